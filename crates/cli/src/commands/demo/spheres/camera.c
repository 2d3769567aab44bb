#include "spheres.h"

/* The ray through a point of the image; both coordinates go from 0 to 1. */
Ray look(double across, double down, double aspect)
{
    Vector eye = vector(0, 0.6, -1);
    Vector through = vector((across - 0.5) * aspect, 0.4 - down, 1);
    return (Ray){eye, unit(through)};
}
