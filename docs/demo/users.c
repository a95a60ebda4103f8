/* What marks catch at the call: `users twice` frees a user a second time, `users long` has a name that is one
 * byte too long, `users middle` frees a pointer into a user. */
#include <stdlib.h>
#include <string.h>

struct user {
    char name[20];
};

__attribute__((noinline)) static struct user *add(const char *name) {
    struct user *user = malloc(sizeof *user);
    if (!user) {
        exit(1);
    }
    memcpy(user->name, name, strlen(name) + 1);
    return user;
}

__attribute__((noinline)) static void forget(char *user) {
    free(user);
}

int main(int argc, char **argv) {
    const char *what = argc > 1 ? argv[1] : "";
    struct user *ann = add(strcmp(what, "long") == 0 ? "Annabel of the Meadow" : "Ann");
    if (strcmp(what, "middle") == 0) {
        forget(ann->name + 8);
    }
    forget(ann->name);
    if (strcmp(what, "twice") == 0) {
        forget(ann->name);
    }
    return 0;
}
