// Loaded before the C library into the processes of a node that is to look broken, as its variables say.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

int clock_gettime(clockid_t id, struct timespec *found) {
    int (*real)(clockid_t, struct timespec *) = dlsym(RTLD_NEXT, "clock_gettime");
    int code = real(id, found);
    if (id == CLOCK_REALTIME && getenv("NODE_CLOCK_AHEAD")) found->tv_sec += 60;
    return code;
}

int fsync(int file) {
    int (*real)(int) = dlsym(RTLD_NEXT, "fsync");
    if (getenv("NODE_SLOW_DISK")) sleep(6);
    return real(file);
}

int connect(int file, const struct sockaddr *to, socklen_t size) {
    int (*real)(int, const struct sockaddr *, socklen_t) = dlsym(RTLD_NEXT, "connect");
    const char *blocked = getenv("NODE_BLOCKED_PORT");
    if (blocked && to->sa_family == AF_INET &&
        ntohs(((const struct sockaddr_in *)to)->sin_port) == atoi(blocked)) {
        errno = ECONNREFUSED;
        return -1;
    }
    return real(file, to, size);
}
