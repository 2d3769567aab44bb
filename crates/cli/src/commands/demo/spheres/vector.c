#include "spheres.h"
#include <math.h>

Vector vector(double x, double y, double z) { return (Vector){x, y, z}; }
Vector plus(Vector a, Vector b) { return vector(a.x + b.x, a.y + b.y, a.z + b.z); }
Vector minus(Vector a, Vector b) { return vector(a.x - b.x, a.y - b.y, a.z - b.z); }
Vector times(double factor, Vector a) { return vector(factor * a.x, factor * a.y, factor * a.z); }
double dot(Vector a, Vector b) { return a.x * b.x + a.y * b.y + a.z * b.z; }
Vector unit(Vector a) { return times(1 / sqrt(dot(a, a)), a); }

Vector reflect(Vector incoming, Vector normal)
{
    return minus(incoming, times(2 * dot(incoming, normal), normal));
}
