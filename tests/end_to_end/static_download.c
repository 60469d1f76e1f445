/* A statically linked client: static_download ADDRESS PORT. Writes the server's answer for /file, head and all, to
 * standard output. */
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

int main(int count, char **words)
{
	static const char request[] = "GET /file HTTP/1.0\r\n\r\n";
	static char buffer[1 << 16];
	struct sockaddr_in to = { .sin_family = AF_INET };
	ssize_t length;
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	if (count != 3 || inet_pton(AF_INET, words[1], &to.sin_addr) != 1)
		return 2;
	to.sin_port = htons(atoi(words[2]));
	if (connect(fd, (struct sockaddr *)&to, sizeof(to)) ||
	    write(fd, request, sizeof(request) - 1) != sizeof(request) - 1) {
		perror("connect");
		return 1;
	}
	while ((length = read(fd, buffer, sizeof(buffer))) > 0)
		if (fwrite(buffer, 1, length, stdout) != (size_t)length)
			return 1;
	if (length)
		perror("read");
	return length != 0 || fflush(stdout);
}
