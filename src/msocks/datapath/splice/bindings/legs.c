/* What the splice asks of a leg's socket, and what it does with one, several system calls at a time: each call from
 * Python costs as much as the kernel's part of it. All return a negated error number where something fails. */

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/ioctl.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "layout.h"

#define TCP_INFO_ROOM 248 /* so much of struct tcp_info is asked for, and zero where the kernel has less */

/* One established leg, addresses as in struct flow_key of layout.h: IPv4 as ::ffff:a.b.c.d, ports in network order. */
struct leg_look {
	uint8_t info[TCP_INFO_ROOM];
	uint32_t info_size;
	uint32_t unread; /* in order, and not read; a FIN is not counted */
	uint8_t remote[16], local[16];
	uint16_t remote_port, local_port;
	uint32_t unused;
};

/* Of struct tcp_info; the C library's is older. */
#define AT_BYTES_RECEIVED 128

static int put_end(const struct sockaddr_storage *name, uint8_t address[16], uint16_t *port)
{
	if (name->ss_family == AF_INET) {
		const struct sockaddr_in *ipv4 = (const struct sockaddr_in *)name;

		memset(address, 0, 10);
		memset(address + 10, 0xff, 2);
		memcpy(address + 12, &ipv4->sin_addr, 4);
		*port = ipv4->sin_port;
		return 0;
	}
	if (name->ss_family == AF_INET6) {
		const struct sockaddr_in6 *ipv6 = (const struct sockaddr_in6 *)name;

		memcpy(address, &ipv6->sin6_addr, 16);
		*port = ipv6->sin6_port;
		return 0;
	}
	return -EAFNOSUPPORT;
}

static int read_info(int fd, struct leg_look *look)
{
	socklen_t size = sizeof(look->info);

	if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, look->info, &size) < 0)
		return -errno;
	look->info_size = size;
	return 0;
}

static uint64_t bytes_received(const struct leg_look *look)
{
	uint64_t received;

	memcpy(&received, look->info + AT_BYTES_RECEIVED, sizeof(received));
	return received;
}

static int count_unread(int fd, uint32_t *unread)
{
	int count;

	if (ioctl(fd, FIONREAD, &count) < 0)
		return -errno;
	*unread = count;
	return 0;
}

/* Reads a struct leg_look. With `unread`, the bytes received and those unread belong to the same moment; else that is 0.
 * The ends are read only where they are asked for: a connection that is lost has none. */
static int msocks_look(int fd, int unread, int ends, void *at)
{
	struct leg_look *look = at;
	struct sockaddr_storage name;
	socklen_t size = sizeof(name);
	uint64_t before;
	int error;

	memset(look, 0, sizeof(*look));
	error = read_info(fd, look);
	if (!error && unread)
		error = count_unread(fd, &look->unread);
	/* Without a byte in the queue now, there was none when the other number was read. */
	while (!error && look->unread) {
		before = bytes_received(look);
		error = read_info(fd, look);
		if (error || bytes_received(look) == before)
			break;
		error = count_unread(fd, &look->unread);
	}
	if (error || !ends)
		return error;
	if (getpeername(fd, (struct sockaddr *)&name, &size) < 0)
		return -errno;
	error = put_end(&name, look->remote, &look->remote_port);
	size = sizeof(name);
	if (!error && getsockname(fd, (struct sockaddr *)&name, &size) < 0)
		return -errno;
	return error ? error : put_end(&name, look->local, &look->local_port);
}

/* How far the taking over of a leg has come. */
enum join_step {
	JOIN_LOST,   /* the reply could not be written */
	JOIN_WAITS,  /* it has not left yet: nobody speaks for the leg but its socket */
	JOIN_LIVE,   /* it has left, and the leg is the splice's */
	JOIN_GONE,   /* and nothing lay in the sockets, so they have vanished and are closed */
};

static int vanish(int fd)
{
	int on = 1;

	return setsockopt(fd, IPPROTO_TCP, TCP_REPAIR, &on, sizeof(on));
}

/* Takes the mobile leg of that number over, and with the first one the server leg (`server`, else -1); their flows are in
 * the table. Writes the reply, looks at the state of the leg's entry, which the kernel's half has changed if the reply has
 * left, and closes the sockets in repair, so that nothing is sent. */
static int msocks_join(int mobile, const void *reply, size_t size, int server, uintptr_t entry, int number)
{
	struct session *session = (void *)entry;
	const volatile uint8_t *state = &session->legs[number].state;
	uint32_t unread = 0;

	if (server >= 0) /* nobody knows yet what lies in the sockets; an ACK of the first byte would tell: none */
		session->owed_up = session->owed_down = 1;
	if (send(mobile, reply, size, MSG_NOSIGNAL) < 0)
		return JOIN_LOST;
	if (*state < LEG_LIVE) /* the mobile's answer, an RST perhaps, may be here already */
		return JOIN_WAITS;
	if (count_unread(mobile, &unread) < 0 || unread || (server >= 0 && (count_unread(server, &unread) < 0 || unread)))
		return JOIN_LIVE;
	if (vanish(mobile) < 0 || (server >= 0 && vanish(server) < 0))
		return JOIN_LIVE;
	close(mobile);
	if (server >= 0)
		close(server);
	return JOIN_GONE;
}

/* Takes the legs of a session that is over out of the table of flows, but for addresses that belong to another session's
 * leg by now. */
static void msocks_forget_flows(int flows, uint32_t slot, uintptr_t entry)
{
	const struct session *session = (const void *)entry;
	struct flow_key theirs[LEGS];
	uint32_t count = 0;
	struct flow found;

	for (int number = 0; number < LEGS; number++) {
		const struct leg *leg = &session->legs[number]; /* begins with its addresses, as struct flow_key */

		if (leg->state != LEG_NONE && bpf_map_lookup_elem(flows, leg, &found) == 0 && found.slot == slot &&
		    found.incarnation == session->incarnation)
			memcpy(&theirs[count++], leg, sizeof(theirs[0]));
	}
	if (count)
		bpf_map_delete_batch(flows, theirs, &count, NULL);
}
