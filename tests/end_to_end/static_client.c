/* A statically linked client: static_client ADDRESS PORT [poll]. Prints what the server says it is.
 * With `poll` it does what Go's runtime does for net.Dial: a non-blocking connect(), epoll, SO_ERROR, getpeername(). */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

static int fail(const char *what, int error)
{
	fprintf(stderr, "%s: %s\n", what, strerror(error));
	return 1;
}

int main(int count, char **words)
{
	struct sockaddr_in6 to6 = { .sin6_family = AF_INET6, .sin6_port = htons(atoi(words[2])) };
	struct sockaddr_in to4 = { .sin_family = AF_INET, .sin_port = htons(atoi(words[2])) };
	int is6 = inet_pton(AF_INET6, words[1], &to6.sin6_addr) == 1, polls = count > 3, error = 0;
	struct sockaddr *to = is6 ? (struct sockaddr *)&to6 : (struct sockaddr *)&to4;
	socklen_t size = is6 ? sizeof(to6) : sizeof(to4), room = sizeof(error);
	struct sockaddr_storage peer;
	char line[200];
	ssize_t length;
	int fd = socket(to->sa_family, SOCK_STREAM | (polls ? SOCK_NONBLOCK : 0), 0);

	inet_pton(AF_INET, words[1], &to4.sin_addr);
	if (connect(fd, to, size) && errno != EINPROGRESS)
		return fail("connect", errno);
	if (polls) {
		struct epoll_event event = { .events = EPOLLOUT | EPOLLIN | EPOLLRDHUP | EPOLLET };
		int poll = epoll_create1(0);

		epoll_ctl(poll, EPOLL_CTL_ADD, fd, &event);
		if (epoll_wait(poll, &event, 1, 10000) != 1)
			return fail("epoll", ETIMEDOUT);
		getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &room);
		room = sizeof(peer);
		if (error)
			return fail("connect", error);
		if (getpeername(fd, (struct sockaddr *)&peer, &room))
			return fail("getpeername", errno);
		if (memcmp(&peer, to, is6 ? 24 : 8))
			return fail("getpeername", EADDRNOTAVAIL);
		event.events = EPOLLIN;
		epoll_ctl(poll, EPOLL_CTL_MOD, fd, &event);
		if (write(fd, "hello\n", 6) != 6 || epoll_wait(poll, &event, 1, 10000) != 1)
			return fail("epoll", ETIMEDOUT);
	} else if (write(fd, "hello\n", 6) != 6)
		return fail("write", errno);
	length = read(fd, line, sizeof(line) - 1);
	if (length <= 0)
		return fail("read", errno);
	line[length] = 0;
	fputs(line, stdout);
	return 0;
}
