#include "spheres.h"
#include <math.h>
#include <stdio.h>

static const char inks[] = " .:-=+*#%@";

/* A character is about twice as high as wide. */
void draw(int columns, int rows)
{
    enum { SAMPLES = 4, DARKEST = sizeof inks - 2 };
    for (int row = 0; row < rows; row++) {
        for (int column = 0; column < columns; column++) {
            double light = 0;
            for (int i = 0; i < SAMPLES * SAMPLES; i++) {
                double across = (column + (i % SAMPLES + 0.5) / SAMPLES) / columns;
                double down = (row + (i / SAMPLES + 0.5) / SAMPLES) / rows;
                light += shade(look(across, down, columns / (2.0 * rows)), 3);
            }
            int ink = (int)(sqrt(light) / SAMPLES * DARKEST * 1.2);
            putchar(inks[ink > DARKEST ? DARKEST : ink]);
        }
        putchar('\n');
    }
}
