/* One byte there, one byte back, one at a time: the time of a round trip, with as little as possible around it.
 *
 *   ping_pong serve PORT
 *   ping_pong measure ADDRESS/PORT (SOCKS-ADDRESS/PORT | -) WARM-UP-ROUND-TRIPS SECONDS
 *
 * `measure` prints {"round_trips": N, "mean_us": ..., "median_us": ..., "p99_us": ..., "min_us": ..., "max_us": ...}.
 * With both ends and whatever is between them on one processor it never halts, since always one of them has something
 * to do. (A halted virtual processor takes the hypervisor tens of microseconds to wake, many times what is measured.) */
#define _GNU_SOURCE
#include "endpoint.h"

static void serve(uint16_t port)
{
    int listener = listen_on(port, 0);
    for (;;) {
        int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        if (fd < 0)
            continue;
        no_delay(fd);
        char byte;
        while (recv(fd, &byte, 1, 0) == 1 && send(fd, &byte, 1, MSG_NOSIGNAL) == 1)
            ;
        close(fd);
    }
}

static int by_value(const void *one, const void *other)
{
    uint32_t a = *(const uint32_t *)one, b = *(const uint32_t *)other;
    return (a > b) - (a < b);
}

static void round_trip(int fd)
{
    char byte = 'x';
    if (send(fd, &byte, 1, MSG_NOSIGNAL) != 1 || recv(fd, &byte, 1, 0) != 1)
        fail("The byte did not come back: %s", errno ? strerror(errno) : "the connection was closed");
}

static void measure(int fd, long warm_up, double seconds)
{
    size_t room = 1 << 16, count = 0;
    uint32_t *times = malloc(room * sizeof *times);
    for (long i = 0; i < warm_up; i++)
        round_trip(fd);
    uint64_t sum = 0, before = now_ns(), end = before + (uint64_t)(seconds * 1e9);
    while (before < end) {
        round_trip(fd);
        uint64_t after = now_ns();
        if (count == room && !(times = realloc(times, (room *= 2) * sizeof *times)))
            fail("Out of memory");
        times[count++] = (uint32_t)(after - before);
        sum += after - before;
        before = after;
    }
    qsort(times, count, sizeof *times, by_value);
    printf("{\"round_trips\": %zu, \"mean_us\": %.4f, \"median_us\": %.4f, \"p99_us\": %.4f, \"min_us\": %.4f, "
           "\"max_us\": %.4f}\n",
           count, (double)sum / (double)count / 1e3, times[count / 2] / 1e3, times[count * 99 / 100] / 1e3,
           times[0] / 1e3, times[count - 1] / 1e3);
}

int main(int argc, char **argv)
{
    if (argc == 3 && !strcmp(argv[1], "serve"))
        serve((uint16_t)atoi(argv[2]));
    if (argc == 6 && !strcmp(argv[1], "measure")) {
        struct endpoint target = parse_endpoint(argv[2]), socks;
        int direct = !strcmp(argv[3], "-");
        if (!direct)
            socks = parse_endpoint(argv[3]);
        measure(connect_now(&target, direct ? NULL : &socks), atol(argv[4]), atof(argv[5]));
        return 0;
    }
    fail("See the head of ping_pong.c");
}
