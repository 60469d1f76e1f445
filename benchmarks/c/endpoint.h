/* Where a connection goes: addresses as "ADDRESS/PORT" (so that IPv6 needs no brackets), and SOCKS5 (RFC 1928) on the
 * way. A program that cannot go on says why on standard error and ends with 1. */
#pragma once

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define SOCKS_REQUEST_MOST 22 /* of a CONNECT with an IPv6 address */

static const uint8_t SOCKS_GREETING[3] = {5, 1, 0};
static const uint8_t SOCKS_METHOD[2] = {5, 0};

__attribute__((noreturn, format(printf, 1, 2))) static void fail(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    exit(1);
}

static inline uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

struct endpoint {
    struct sockaddr_storage address;
    socklen_t size;
};

/* "ADDRESS/PORT", or "ADDRESS" for port 0. */
static struct endpoint parse_endpoint(const char *text)
{
    struct endpoint found = {0};
    char host[INET6_ADDRSTRLEN];
    const char *slash = strchr(text, '/');
    snprintf(host, sizeof host, "%.*s", slash ? (int)(slash - text) : (int)strlen(text), text);
    uint16_t port = htons(slash ? (uint16_t)atoi(slash + 1) : 0);
    struct sockaddr_in *v4 = (struct sockaddr_in *)&found.address;
    struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)&found.address;
    if (inet_pton(AF_INET, host, &v4->sin_addr) == 1) {
        v4->sin_family = AF_INET;
        v4->sin_port = port;
        found.size = sizeof *v4;
    } else if (inet_pton(AF_INET6, host, &v6->sin6_addr) == 1) {
        v6->sin6_family = AF_INET6;
        v6->sin6_port = port;
        found.size = sizeof *v6;
    } else {
        fail("%s is not ADDRESS/PORT", text);
    }
    return found;
}

static inline void no_delay(int fd)
{
    int on = 1;
    if (setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on))
        fail("TCP_NODELAY: %s", strerror(errno));
}

/* A CONNECT to `target`; the length of the request. */
static inline size_t socks_request(const struct endpoint *target, uint8_t request[SOCKS_REQUEST_MOST])
{
    memcpy(request, "\5\1\0", 3);
    if (target->address.ss_family == AF_INET) {
        const struct sockaddr_in *v4 = (const struct sockaddr_in *)&target->address;
        request[3] = 1;
        memcpy(request + 4, &v4->sin_addr, 4);
        memcpy(request + 8, &v4->sin_port, 2);
        return 10;
    }
    const struct sockaddr_in6 *v6 = (const struct sockaddr_in6 *)&target->address;
    request[3] = 4;
    memcpy(request + 4, &v6->sin6_addr, 16);
    memcpy(request + 20, &v6->sin6_port, 2);
    return 22;
}

/* Whether a reply grants the CONNECT and ends where it should: nothing of what follows may be in it yet. */
static inline int socks_granted(const uint8_t *reply, ssize_t size)
{
    return size >= 4 && reply[1] == 0 && ((reply[3] == 1 && size == 10) || (reply[3] == 4 && size == 22));
}

/* A connection that stands, with TCP_NODELAY; `socks` may be null. */
static inline int connect_now(const struct endpoint *target, const struct endpoint *socks)
{
    const struct endpoint *next = socks ? socks : target;
    int fd = socket(next->address.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || connect(fd, (const struct sockaddr *)&next->address, next->size))
        fail("Cannot connect: %s", strerror(errno));
    no_delay(fd);
    if (socks) {
        uint8_t request[SOCKS_REQUEST_MOST], reply[SOCKS_REQUEST_MOST];
        size_t size = socks_request(target, request);
        if (write(fd, SOCKS_GREETING, sizeof SOCKS_GREETING) != sizeof SOCKS_GREETING || read(fd, reply, 2) != 2 ||
            memcmp(reply, SOCKS_METHOD, 2) != 0 || write(fd, request, size) != (ssize_t)size ||
            !socks_granted(reply, read(fd, reply, sizeof reply)))
            fail("The SOCKS server refused, or did not answer as RFC 1928 says");
    }
    return fd;
}

/* A listener for IPv4 and IPv6 on all addresses; several processes may share its port. */
static inline int listen_on(uint16_t port, int flags)
{
    struct sockaddr_in6 any = {.sin6_family = AF_INET6, .sin6_port = htons(port)};
    int on = 1, off = 0;
    int fd = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC | flags, 0);
    if (fd < 0 || setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off) ||
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) ||
        bind(fd, (struct sockaddr *)&any, sizeof any) || listen(fd, 4096))
        fail("Cannot listen on port %u: %s", port, strerror(errno));
    return fd;
}
