#include "spheres.h"
#include <math.h>

int meet_sphere(const Sphere *sphere, Ray ray, Hit *hit)
{
    Vector from = minus(ray.origin, sphere->centre);
    double half = dot(from, ray.direction);
    double root = half * half - dot(from, from) + sphere->radius * sphere->radius;
    if (root < 0)
        return 0;
    double distance = -half - sqrt(root);
    if (distance < NEAR || distance >= hit->distance)
        return 0;
    hit->distance = distance;
    hit->point = plus(ray.origin, times(distance, ray.direction));
    hit->normal = unit(minus(hit->point, sphere->centre));
    hit->brightness = sphere->brightness;
    hit->mirror = sphere->mirror;
    return 1;
}
