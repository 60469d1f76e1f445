/* Some connections that carry bytes as fast as they can, all in one direction.
 *
 *   bulk serve PORT
 *   bulk measure ADDRESS/PORT (SOCKS-ADDRESS/PORT | -) (down | up) FLOWS SECONDS
 *
 * `measure` lets the flows run for a tenth of the time before it counts, and prints {"bytes": N, "seconds": S,
 * "busy_s": P, "least_flow": N, "most_flow": N}: the bytes of all flows, processor seconds of the whole machine
 * meanwhile (interrupts included), and the bytes of the slowest and of the fastest flow. Bytes count as sent when they
 * are acknowledged (RFC 4898, tcpi_bytes_acked). */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/tcp.h>
#include <poll.h>
#include <sys/epoll.h>

#define _NETINET_TCP_H /* linux/tcp.h is the one that knows tcpi_bytes_acked */
#include "endpoint.h"

#define PIECE (256 * 1024)
#define MOST_FLOWS 64
#define MOST_CONNECTIONS 20000

enum { DOWN = 'd', UP = 'u' };

static uint8_t buffer[PIECE];

/* One step of a flow: 0 at its end. */
static int step(int fd, int sends)
{
    ssize_t done = sends ? send(fd, buffer, PIECE, MSG_NOSIGNAL) : recv(fd, buffer, PIECE, 0);
    return done > 0 || (done < 0 && errno == EAGAIN);
}

static void watch(int poll, int fd, uint32_t events)
{
    struct epoll_event event = {.events = events, .data.fd = fd};
    if (epoll_ctl(poll, EPOLL_CTL_ADD, fd, &event))
        fail("epoll: %s", strerror(errno));
}

/* The first byte of a connection says in which direction the others go. */
static void serve(uint16_t port)
{
    static uint8_t sends[MOST_CONNECTIONS];
    int poll = epoll_create1(EPOLL_CLOEXEC), listener = listen_on(port, SOCK_NONBLOCK);
    watch(poll, listener, EPOLLIN);
    for (;;) {
        struct epoll_event events[MOST_FLOWS];
        int ready = epoll_wait(poll, events, MOST_FLOWS, -1);
        for (int i = 0; i < ready; i++) {
            int fd = events[i].data.fd;
            if (fd == listener) {
                int new = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
                uint8_t direction;
                if (new < 0)
                    continue;
                if (new >= MOST_CONNECTIONS || recv(new, &direction, 1, 0) != 1) {
                    close(new);
                    continue;
                }
                fcntl(new, F_SETFL, O_NONBLOCK);
                sends[new] = direction == DOWN;
                watch(poll, new, sends[new] ? EPOLLOUT : EPOLLIN);
            } else if (!step(fd, sends[fd])) {
                close(fd);
            }
        }
    }
}

static double busy_s(void)
{
    unsigned long long field[7]; /* user, nice, system, idle, iowait, irq, softirq: proc_stat(5) */
    FILE *file = fopen("/proc/stat", "r");
    if (!file || fscanf(file, "cpu %llu %llu %llu %llu %llu %llu %llu", &field[0], &field[1], &field[2], &field[3],
                        &field[4], &field[5], &field[6]) != 7)
        fail("Cannot read /proc/stat");
    fclose(file);
    return (double)(field[0] + field[1] + field[2] + field[5] + field[6]) / (double)sysconf(_SC_CLK_TCK);
}

static uint64_t carried(int fd, int sends)
{
    struct tcp_info info;
    socklen_t size = sizeof info;
    if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &size))
        fail("TCP_INFO: %s", strerror(errno));
    return sends ? info.tcpi_bytes_acked : info.tcpi_bytes_received;
}

static void run(int poll, int sends, double seconds)
{
    uint64_t end = now_ns() + (uint64_t)(seconds * 1e9);
    while (now_ns() < end) {
        struct epoll_event events[MOST_FLOWS];
        int ready = epoll_wait(poll, events, MOST_FLOWS, 100);
        for (int i = 0; i < ready; i++)
            if (!step(events[i].data.fd, sends))
                fail("A flow ended early: %s", errno ? strerror(errno) : "the connection was closed");
    }
}

static void measure(const struct endpoint *target, const struct endpoint *socks, uint8_t direction, int flows,
                    double seconds)
{
    int fds[MOST_FLOWS], poll = epoll_create1(EPOLL_CLOEXEC), sends = direction == UP;
    uint64_t before[MOST_FLOWS], total = 0, least = UINT64_MAX, most = 0;
    for (int i = 0; i < flows; i++) {
        fds[i] = connect_now(target, socks);
        if (send(fds[i], &direction, 1, MSG_NOSIGNAL) != 1)
            fail("Cannot begin: %s", strerror(errno));
        fcntl(fds[i], F_SETFL, O_NONBLOCK);
        watch(poll, fds[i], sends ? EPOLLOUT : EPOLLIN);
    }
    run(poll, sends, seconds / 10);
    for (int i = 0; i < flows; i++)
        before[i] = carried(fds[i], sends);
    double busy = busy_s();
    uint64_t began = now_ns();
    run(poll, sends, seconds);
    uint64_t ended = now_ns();
    busy = busy_s() - busy;
    for (int i = 0; i < flows; i++) {
        uint64_t bytes = carried(fds[i], sends) - before[i];
        total += bytes;
        least = bytes < least ? bytes : least;
        most = bytes > most ? bytes : most;
    }
    printf("{\"bytes\": %llu, \"seconds\": %.6f, \"busy_s\": %.2f, \"least_flow\": %llu, \"most_flow\": %llu}\n",
           (unsigned long long)total, (double)(ended - began) / 1e9, busy, (unsigned long long)least,
           (unsigned long long)most);
}

int main(int argc, char **argv)
{
    if (argc == 3 && !strcmp(argv[1], "serve"))
        serve((uint16_t)atoi(argv[2]));
    if (argc == 7 && !strcmp(argv[1], "measure") && atoi(argv[5]) > 0 && atoi(argv[5]) <= MOST_FLOWS) {
        struct endpoint target = parse_endpoint(argv[2]), socks;
        int direct = !strcmp(argv[3], "-");
        if (!direct)
            socks = parse_endpoint(argv[3]);
        measure(&target, direct ? NULL : &socks, (uint8_t)argv[4][0], atoi(argv[5]), atof(argv[6]));
        return 0;
    }
    fail("See the head of bulk.c");
}
