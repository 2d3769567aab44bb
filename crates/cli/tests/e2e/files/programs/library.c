/* A library whose pages are needed one by one: each function and each datum is far from the next. */
#define FAR 65536
#define PART(n) \
    static const unsigned char data##n[FAR] __attribute__((aligned(4096))) = {VERSION, [FAR - 1] = VERSION}; \
    __attribute__((aligned(4096))) static int part##n(void) { return data##n[0] + data##n[FAR - 1]; }
PART(0) PART(1) PART(2) PART(3) PART(4) PART(5) PART(6) PART(7) PART(8) PART(9)

int part(int number)
{
    static int (*const parts[])(void) = {part0, part1, part2, part3, part4,
                                         part5, part6, part7, part8, part9};
    return parts[number]();
}
