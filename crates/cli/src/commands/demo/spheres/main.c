#include "spheres.h"
#include <stdlib.h>

int main(int count, char **arguments)
{
    int columns = count > 1 ? atoi(arguments[1]) : 72;
    int rows = count > 2 ? atoi(arguments[2]) : 22;
    if (columns < 1 || rows < 1)
        return 2;
    draw(columns, rows);
    return 0;
}
