/* Says what version it and its library are, in parts, one for each line that it reads. */
#include <stdio.h>
#include <stdlib.h>

#define FAR 65536
static const unsigned char own[10 * FAR] = {[0] = VERSION,       [FAR] = VERSION,     [2 * FAR] = VERSION,
                                            [3 * FAR] = VERSION, [4 * FAR] = VERSION, [5 * FAR] = VERSION,
                                            [6 * FAR] = VERSION, [7 * FAR] = VERSION, [8 * FAR] = VERSION,
                                            [9 * FAR] = VERSION};
int part(int number);

int main(void)
{
    char line[16];
    while (fgets(line, sizeof line, stdin)) {
        int number = atoi(line);
        printf("%d %d\n", own[number * FAR], part(number));
        fflush(stdout);
    }
    return 0;
}
