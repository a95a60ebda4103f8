// Objects with and without a vtable, for the typed values of the GDB plugin.
#include <csignal>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

namespace geometry {
struct Shape {
    int number = 7;
    virtual ~Shape() = default;
    virtual int area() const = 0;
};

template <class T> struct Circle : Shape {
    T radius = 3;
    std::string name = "ring";
    int area() const override {
        return 28;
    }
};

struct Box : Shape {
    int width = 4, height = 5;
    int area() const override {
        return width * height;
    }
};
} // namespace geometry

struct Plain {
    int number;
    double values[20];
};

int main() {
    std::vector<std::unique_ptr<geometry::Shape>> shapes;
    for (int i = 0; i < 5; i++) {
        shapes.push_back(std::make_unique<geometry::Circle<int>>());
    }
    for (int i = 0; i < 3; i++) {
        shapes.push_back(std::make_unique<geometry::Box>());
    }
    geometry::Shape *first_box = shapes[5].get();
    Plain *plain = new Plain{42, {}};
    Plain &referenced = *plain;
    std::printf("ready\n");
    std::fflush(stdout);
    std::raise(SIGTRAP);
    int area = first_box->area() + referenced.number;
    delete plain;
    return area > 0 ? 0 : 1;
}
