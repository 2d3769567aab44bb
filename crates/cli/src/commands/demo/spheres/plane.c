#include "spheres.h"
#include <math.h>

/* A floor of tiles at y = -1. */
int meet_floor(Ray ray, Hit *hit)
{
    if (ray.direction.y > -NEAR)
        return 0;
    double distance = (-1 - ray.origin.y) / ray.direction.y;
    if (distance < NEAR || distance >= hit->distance)
        return 0;
    hit->distance = distance;
    hit->point = plus(ray.origin, times(distance, ray.direction));
    hit->normal = vector(0, 1, 0);
    int tile = (int)(floor(hit->point.x) + floor(hit->point.z));
    hit->brightness = tile % 2 ? 0.25 : 0.75;
    hit->mirror = 0.1;
    return 1;
}
