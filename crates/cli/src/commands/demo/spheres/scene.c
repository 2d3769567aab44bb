#include "spheres.h"

static const Sphere spheres[] = {
    {{-1.7, 0.0, 4.5}, 1.0, 1.0, 0.1},
    {{0.4, -0.3, 3.4}, 0.7, 0.7, 0.2},
    {{2.2, 0.3, 5.0}, 1.3, 0.3, 0.7},
};

int meet_scene(Ray ray, Hit *hit)
{
    hit->distance = FAR;
    int met = meet_floor(ray, hit);
    for (unsigned i = 0; i < sizeof spheres / sizeof *spheres; i++)
        met |= meet_sphere(&spheres[i], ray, hit);
    return met;
}
