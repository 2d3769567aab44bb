#include "spheres.h"

static const Vector sun = {-4, 6, -1};

double shade(Ray ray, int bounces)
{
    Hit hit, blocked;
    if (!meet_scene(ray, &hit))
        return ray.direction.y > 0 ? 0.01 * (1 - ray.direction.y) : 0;
    Vector towards = unit(minus(sun, hit.point));
    double light = dot(hit.normal, towards);
    Ray shadow = {plus(hit.point, times(1e-4, hit.normal)), towards};
    if (light < 0 || meet_scene(shadow, &blocked))
        light = 0;
    double seen = hit.brightness * (0.15 + 0.85 * light);
    if (bounces == 0)
        return seen;
    Ray onward = {shadow.origin, reflect(ray.direction, hit.normal)};
    return (1 - hit.mirror) * seen + hit.mirror * shade(onward, bounces - 1);
}
