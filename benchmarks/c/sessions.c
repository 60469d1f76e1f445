/* Connections that carry one byte there and back: many after each other for a rate, or many at once that then idle.
 *
 *   sessions serve PORT
 *   sessions rate TARGETS SOURCES (SOCKS-ADDRESS/PORT | -) PARALLEL SECONDS
 *   sessions count TARGETS SOURCES (SOCKS-ADDRESS/PORT | -) PARALLEL CONNECTIONS
 *   sessions hold TARGETS SOURCES (SOCKS-ADDRESS/PORT | -) PARALLEL
 *
 * TARGETS are ADDRESS/PORT, SOURCES are addresses of this host, both with commas in between; connections take them in
 * turn, so that no pair of addresses runs out of ports while TIME-WAIT (RFC 9293) holds them. Through SOCKS5 every
 * answer is waited for, as most clients do.
 *
 * The byte is `x` for a connection that is to be held, `q` for one that the server closes behind its answer. So
 * TIME-WAIT falls to the server and, with a proxy, to its listening port, where a newer SYN ends it (RFC 6191). Were it
 * the client that closed first, the proxy's own ports toward the server would be taken for a minute each, and one that
 * binds them before it connects would run out of them in seconds.
 *
 * `rate` and `count` print {"connections": N, "seconds": S, "median_us": ..., "p99_us": ..., "max_us": ...}, times from
 * before connect(2) to the byte that came back. `hold` reads numbers from standard input; for each it opens or closes
 * connections until so many idle, and prints the number; a byte goes once more over each held connection for "check". */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sys/epoll.h>

#include "endpoint.h"

#define MOST_EVENTS 128
#define MOST_FDS 20000
#define MOST_ADDRESSES 256
#define LONGEST_WAIT_MS 10000
#ifndef IP_BIND_ADDRESS_NO_PORT
#define IP_BIND_ADDRESS_NO_PORT 24
#endif

enum stage { CONNECTING, GREETED, REQUESTED, ASKED, ANSWERED };

static struct connection {
    uint64_t began;
    const struct endpoint *target;
    enum stage stage;
} connections[MOST_FDS];

static struct endpoint targets[MOST_ADDRESSES], sources[MOST_ADDRESSES], socks;
static int target_count, source_count, through_socks, poll_fd;
static long begun, completed, open_now;
static int held[MOST_FDS], held_count, keep;
static uint32_t *times;
static size_t times_room, noted;

static int parse_list(char *text, struct endpoint *list)
{
    int count = 0;
    for (char *item = strtok(text, ","); item; item = strtok(NULL, ",")) {
        if (count == MOST_ADDRESSES)
            fail("More than %d addresses", MOST_ADDRESSES);
        list[count++] = parse_endpoint(item);
    }
    return count;
}

static void begin(void)
{
    const struct endpoint *target = &targets[begun % target_count];
    const struct endpoint *next = through_socks ? &socks : target;
    const struct endpoint *source = &sources[(begun / target_count) % source_count];
    int on = 1, fd = socket(next->address.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0 || fd >= MOST_FDS)
        fail("No descriptor for another connection after %ld: %s", begun, fd < 0 ? strerror(errno) : "too many");
    no_delay(fd);
    connections[fd] = (struct connection){.began = now_ns(), .target = target, .stage = CONNECTING};
    if (setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on) ||
        bind(fd, (const struct sockaddr *)&source->address, source->size))
        fail("Cannot bind: %s", strerror(errno));
    if (connect(fd, (const struct sockaddr *)&next->address, next->size) && errno != EINPROGRESS)
        fail("Cannot connect after %ld connections: %s", begun, strerror(errno));
    struct epoll_event event = {.events = EPOLLOUT, .data.fd = fd};
    epoll_ctl(poll_fd, EPOLL_CTL_ADD, fd, &event);
    begun++;
    open_now++;
}

static void say(int fd, const void *data, size_t size, enum stage stage)
{
    if (send(fd, data, size, MSG_NOSIGNAL) != (ssize_t)size)
        fail("Cannot send in stage %d after %ld connections: %s", stage, completed, strerror(errno));
    connections[fd].stage = stage;
}

static void note_time(int fd)
{
    if (noted == times_room && !(times = realloc(times, (times_room = 2 * times_room + 65536) * sizeof *times)))
        fail("Out of memory");
    times[noted++] = (uint32_t)((now_ns() - connections[fd].began) / 1000);
}

static void finish(int fd)
{
    completed++;
    open_now--;
    if (keep) {
        epoll_ctl(poll_fd, EPOLL_CTL_DEL, fd, NULL);
        held[held_count++] = fd;
    } else {
        close(fd);
    }
}

static void advance(int fd)
{
    struct connection *connection = &connections[fd];
    uint8_t data[SOCKS_REQUEST_MOST];
    if (connection->stage == CONNECTING) {
        struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
        epoll_ctl(poll_fd, EPOLL_CTL_MOD, fd, &event);
        if (through_socks)
            say(fd, SOCKS_GREETING, sizeof SOCKS_GREETING, GREETED);
        else
            say(fd, keep ? "x" : "q", 1, ASKED);
        return;
    }
    ssize_t size = recv(fd, data, sizeof data, 0);
    if (size < 0 && errno == EAGAIN)
        return;
    if (connection->stage == GREETED && size == 2 && !memcmp(data, SOCKS_METHOD, 2)) {
        uint8_t request[SOCKS_REQUEST_MOST];
        say(fd, request, socks_request(connection->target, request), REQUESTED);
    } else if (connection->stage == REQUESTED && socks_granted(data, size)) {
        say(fd, keep ? "x" : "q", 1, ASKED);
    } else if (connection->stage == ASKED && size == 1) {
        note_time(fd);
        if (keep)
            finish(fd);
        else
            connection->stage = ANSWERED;
    } else if (connection->stage == ANSWERED && size == 0) {
        finish(fd);
    } else {
        fail("Connection %ld got %zd bytes in stage %d: %s", completed, size, connection->stage,
             size < 0 ? strerror(errno) : size ? "not what it waited for" : "closed");
    }
}

/* Keeps `parallel` connections under way until `most` have begun or the time has come. */
static void run(int parallel, long most, uint64_t end)
{
    for (;;) {
        while (open_now < parallel && begun < most && now_ns() < end)
            begin();
        if (!open_now)
            return;
        struct epoll_event events[MOST_EVENTS];
        int ready = epoll_wait(poll_fd, events, MOST_EVENTS, LONGEST_WAIT_MS);
        if (ready <= 0)
            fail("%ld connections did not answer for %d s, after %ld", open_now, LONGEST_WAIT_MS / 1000, completed);
        for (int i = 0; i < ready; i++)
            advance(events[i].data.fd);
    }
}

static int by_value(const void *one, const void *other)
{
    uint32_t a = *(const uint32_t *)one, b = *(const uint32_t *)other;
    return (a > b) - (a < b);
}

static void report(uint64_t began)
{
    double seconds = (double)(now_ns() - began) / 1e9;
    if (!completed)
        fail("No connection came about");
    qsort(times, (size_t)completed, sizeof *times, by_value);
    printf("{\"connections\": %ld, \"seconds\": %.6f, \"median_us\": %u, \"p99_us\": %u, \"max_us\": %u}\n", completed,
           seconds, times[completed / 2], times[completed * 99 / 100], times[completed - 1]);
}

static void hold(int parallel)
{
    char line[32];
    keep = 1;
    while (fgets(line, sizeof line, stdin)) {
        if (!strcmp(line, "check\n")) {
            for (int i = 0; i < held_count; i++) {
                char byte = 'x';
                struct timeval patience = {.tv_sec = LONGEST_WAIT_MS / 1000};
                fcntl(held[i], F_SETFL, 0);
                setsockopt(held[i], SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
                if (send(held[i], &byte, 1, MSG_NOSIGNAL) != 1 || recv(held[i], &byte, 1, 0) != 1)
                    fail("Held connection %d of %d is dead: %s", i, held_count, strerror(errno));
            }
        } else {
            int wanted = atoi(line);
            run(parallel, begun + (wanted - held_count), UINT64_MAX);
            while (held_count > wanted)
                close(held[--held_count]);
        }
        printf("%s", line);
        fflush(stdout);
    }
}

static void serve(uint16_t port)
{
    int listener = listen_on(port, SOCK_NONBLOCK);
    struct epoll_event event = {.events = EPOLLIN, .data.fd = listener};
    epoll_ctl(poll_fd, EPOLL_CTL_ADD, listener, &event);
    for (;;) {
        struct epoll_event events[MOST_EVENTS];
        int ready = epoll_wait(poll_fd, events, MOST_EVENTS, -1);
        for (int i = 0; i < ready; i++) {
            int fd = events[i].data.fd;
            if (fd == listener) {
                while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
                    event = (struct epoll_event){.events = EPOLLIN, .data.fd = fd};
                    epoll_ctl(poll_fd, EPOLL_CTL_ADD, fd, &event);
                }
                continue;
            }
            uint8_t data[4096];
            ssize_t size = recv(fd, data, sizeof data, 0);
            if (size < 0 && errno == EAGAIN)
                continue;
            if (size <= 0 || send(fd, data, (size_t)size, MSG_NOSIGNAL) != size || data[size - 1] == 'q')
                close(fd);
        }
    }
}

int main(int argc, char **argv)
{
    poll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (argc == 3 && !strcmp(argv[1], "serve"))
        serve((uint16_t)atoi(argv[2]));
    if (argc < 6)
        fail("See the head of sessions.c");
    target_count = parse_list(argv[2], targets);
    source_count = parse_list(argv[3], sources);
    through_socks = strcmp(argv[4], "-") != 0;
    if (through_socks)
        socks = parse_endpoint(argv[4]);
    int parallel = atoi(argv[5]);
    uint64_t began = now_ns();
    if (argc == 6 && !strcmp(argv[1], "hold")) {
        hold(parallel);
    } else if (argc == 7 && !strcmp(argv[1], "rate")) {
        run(parallel, INT64_MAX, began + (uint64_t)(atof(argv[6]) * 1e9));
        report(began);
    } else if (argc == 7 && !strcmp(argv[1], "count")) {
        run(parallel, atol(argv[6]), UINT64_MAX);
        report(began);
    } else {
        fail("See the head of sessions.c");
    }
    return 0;
}
