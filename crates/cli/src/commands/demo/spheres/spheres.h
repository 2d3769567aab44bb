/* A small ray tracer that draws with characters. */
#ifndef SPHERES_H
#define SPHERES_H

typedef struct { double x, y, z; } Vector;
typedef struct { Vector origin, direction; } Ray;
typedef struct { double distance; Vector point, normal; double brightness, mirror; } Hit;
typedef struct { Vector centre; double radius, brightness, mirror; } Sphere;

#define FAR 1e9
#define NEAR 1e-6

Vector vector(double x, double y, double z);
Vector plus(Vector a, Vector b);
Vector minus(Vector a, Vector b);
Vector times(double factor, Vector a);
double dot(Vector a, Vector b);
Vector unit(Vector a);
Vector reflect(Vector incoming, Vector normal);

int meet_sphere(const Sphere *sphere, Ray ray, Hit *hit);
int meet_floor(Ray ray, Hit *hit);
int meet_scene(Ray ray, Hit *hit);
double shade(Ray ray, int bounces);
Ray look(double across, double down, double aspect);
void draw(int columns, int rows);

#endif
