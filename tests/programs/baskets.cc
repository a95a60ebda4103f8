// Blocks that a template's member allocates, the first begins with a pointer to a vtable, a global holds one.
// Says "basket ADDRESS", "ready PID", and waits.
#include <cstdio>
#include <unistd.h>

namespace shop {
template <class T> struct Basket {
    T number;
    explicit Basket(T first) : number(first) {
    }
    virtual ~Basket() = default;
    __attribute__((noinline)) static Basket *take(T first) {
        return new Basket(first);
    }
};
Basket<int> *first_taken;
} // namespace shop

int main() {
    shop::first_taken = shop::Basket<int>::take(7);
    for (int i = 0; i < 4; i++) {
        delete shop::Basket<int>::take(i);
    }
    std::printf("basket %p\nready %d\n", static_cast<void *>(shop::first_taken), static_cast<int>(getpid()));
    std::fflush(stdout);
    pause();
    return shop::first_taken->number;
}
