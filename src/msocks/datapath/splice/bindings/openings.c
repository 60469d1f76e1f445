/* A server leg from before its SYN until it and the first mobile leg are found to fit each other: as in legs.c, several
 * system calls at a time. Included behind it. All return a negated error number where something fails. */

/* Of struct tcp_info, as LegOptions in options.py reads it. */
#define AT_STATE 0
#define AT_OPTIONS 5
#define AT_SCALES 6
#define AT_SND_MSS 16
#define AT_UNACKED 24
#define AT_RTT 68
#define AT_ADVMSS 84
#define AT_BYTES_ACKED 120
#define AT_NOTSENT 144
#define AT_SND_WND 228

#define INFO_WITH_SND_WND 232
#define ESTABLISHED 1
#define OPTION_TIMESTAMPS 1
#define OPTION_SACK 2
#define OPTION_ECN (8 | 16)
#define TIMESTAMPS_BYTES 12
#define IPV4_HEADERS 40
#define IPV6_HEADERS 60
#define LEAST_MSS 536
#define ORDINARY_SCALE 7 /* of Linux, unless a program or its operator has chosen its buffers */

static uint32_t word(const struct leg_look *look, int at)
{
	uint32_t value;

	memcpy(&value, look->info + at, sizeof(value));
	return value;
}

static int timestamps_bytes(const struct leg_look *look)
{
	return look->info[AT_OPTIONS] & OPTION_TIMESTAMPS ? TIMESTAMPS_BYTES : 0;
}

static int is_mapped(const uint8_t address[16])
{
	static const uint8_t prefix[12] = {[10] = 0xff, [11] = 0xff};

	return memcmp(address, prefix, sizeof(prefix)) == 0;
}

/* Takes the entry for a session that begins. */
static void msocks_open_entry(uintptr_t entry)
{
	struct session *session = (void *)entry;
	uint32_t incarnation = session->incarnation + 1;
	struct timespec now;

	/* A record of a session in tables that were thrown away shall find none in those that came after them. */
	if (incarnation == 1)
		(void)!getrandom(&incarnation, sizeof(incarnation), 0);
	clock_gettime(CLOCK_MONOTONIC, &now);
	memset(session, 0, sizeof(*session));
	session->incarnation = incarnation;
	session->last_ns = now.tv_sec * 1000000000ULL + now.tv_nsec;
	session->state = SESSION_OPENING;
}

/* The mark of a socket that is to connect, and a local port of its family on any address, which sockets to other servers
 * may have as well. */
static int bind_port(int fd, int is_ipv4, int port)
{
	struct sockaddr_in ipv4 = {.sin_family = AF_INET, .sin_port = htons(port)};
	struct sockaddr_in6 ipv6 = {.sin6_family = AF_INET6, .sin6_port = htons(port)};
	const void *name = is_ipv4 ? (const void *)&ipv4 : (const void *)&ipv6;
	int mark = MARK_OF_DAEMON, on = 1;

	if (setsockopt(fd, SOL_SOCKET, SO_MARK, &mark, sizeof(mark)) < 0 ||
	    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) < 0 ||
	    bind(fd, name, is_ipv4 ? sizeof(ipv4) : sizeof(ipv6)) < 0)
		return -errno;
	return 0;
}

/* How large the server's segments may be: they must fit the mobile's narrowest link, from the SYN on (RFC 9293 section
 * 3.7.1). 0 where nothing is known. */
static uint16_t largest_segment(const struct leg_look *mobile, int smallest_mtu, int headers)
{
	uint32_t largest = mobile ? word(mobile, AT_SND_MSS) + timestamps_bytes(mobile) : UINT16_MAX;

	if (smallest_mtu && smallest_mtu - headers < (int64_t)largest)
		largest = smallest_mtu > headers ? smallest_mtu - headers : 0;
	else if (!mobile)
		return 0;
	return largest < LEAST_MSS ? LEAST_MSS : largest;
}

/* Before a socket connects to `remote`: it gets its mark and the local port. Its session's entry says what the SYN is to
 * say, by what the client at `mobile` (or -1) takes, and `smallest_mtu` (or 0); and the table of openings, that it is a
 * server leg. What that table refuses is a positive error number; the socket is bound then. */
static int msocks_prepare(int server, int mobile, int smallest_mtu, const void *remote, int remote_port, int local_port,
			  int openings, uint32_t slot, uintptr_t entry)
{
	struct session *session = (void *)entry;
	struct opening_key key = {.remote_port = htons(remote_port), .local_port = htons(local_port)};
	struct flow flow = {.slot = slot, .incarnation = session->incarnation, .leg = LEG_SERVER};
	struct leg_look look;
	int is_ipv4, is_known, error;

	memcpy(key.remote, remote, sizeof(key.remote));
	is_ipv4 = is_mapped(key.remote);
	error = bind_port(server, is_ipv4, local_port);
	if (error)
		return error;
	is_known = mobile >= 0 && read_info(mobile, &look) == 0;
	if (is_known && !timestamps_bytes(&look))
		session->flags = SESSION_STRIP_TIMESTAMPS;
	if (is_known && (look.info[AT_SCALES] & 0xf) < ORDINARY_SCALE) {
		/* Its windows are expressed for the server in this host's unit: not in a coarser one than its own. */
		int clamp = 0xffff << (look.info[AT_SCALES] & 0xf);

		if (setsockopt(server, IPPROTO_TCP, TCP_WINDOW_CLAMP, &clamp, sizeof(clamp)) < 0)
			return -errno;
	}
	/* Not by TCP_MAXSEG: that would lower what the kernel says of the server's own limit as well. */
	session->legs[LEG_SERVER].announced =
		largest_segment(is_known ? &look : NULL, smallest_mtu, is_ipv4 ? IPV4_HEADERS : IPV6_HEADERS);
	return -bpf_map_update_elem(openings, &key, &flow, BPF_ANY);
}

/* ---- the first pair ---- */

static int is_near(const uint8_t address[16])
{
	static const uint8_t loopback[16] = {[15] = 1};

	if (is_mapped(address))
		return address[12] == 127 || (address[12] == 169 && address[13] == 254);
	return memcmp(address, loopback, 16) == 0 || (address[0] == 0xfe && (address[1] & 0xc0) == 0x80);
}

/* Whether everything about a leg is as nearly always, and nothing of this host's is on its way. */
static int is_plain(const struct leg_look *look)
{
	return look->info_size >= INFO_WITH_SND_WND && look->info[AT_STATE] == ESTABLISHED &&
	       !(look->info[AT_OPTIONS] & OPTION_ECN) && !word(look, AT_UNACKED) && !word(look, AT_NOTSENT) &&
	       memcmp(look->remote, look->local, 16) && !is_near(look->remote) && !is_near(look->local);
}

static void fill_leg(struct leg *leg, const struct leg_look *look)
{
	uint32_t rtt_ms = (word(look, AT_RTT) + 999) / 1000;

	memcpy(leg, look->remote, sizeof(struct flow_key));
	leg->family = is_mapped(look->local) ? 4 : 6;
	leg->in_scale = look->info[AT_SCALES] & 0xf;
	leg->out_scale = look->info[AT_SCALES] >> 4;
	leg->round_trip_ms = rtt_ms ? rtt_ms : 1;
	if (look->info[AT_OPTIONS] & OPTION_TIMESTAMPS)
		leg->flags |= LEG_TIMESTAMPS;
	if (look->info[AT_OPTIONS] & OPTION_SACK)
		leg->flags |= LEG_SACK;
}

/* Asks the kernel about a server leg that has connected and the first mobile leg, and pairs them where everything is as
 * it is with nearly all: a part of what fitting.py and options.py accept. Both legs' entries are filled in then, and
 * their flows in the table; until the reply the kernel's sockets answer. Else returns 0, and the daemon has to look
 * closer. */
static int msocks_pair(int mobile, int server, int flows, uint32_t slot, int resumable, uintptr_t entry)
{
	struct session *session = (void *)entry;
	struct leg *up = &session->legs[LEG_SERVER], *down = &session->legs[1], made = {};
	struct leg_look near, far;
	struct flow values[2];
	struct flow_key keys[2];
	uint32_t count = 2;
	uint64_t heard;

	if (msocks_look(mobile, 1, 1, &near) < 0 || msocks_look(server, 0, 1, &far) < 0)
		return 0;
	if (!is_plain(&near) || !is_plain(&far) || timestamps_bytes(&near) != timestamps_bytes(&far) ||
	    word(&far, AT_SND_MSS) < word(&near, AT_ADVMSS) || !(up->flags & LEG_NOTED) || up->state != LEG_NONE ||
	    down->state != LEG_NONE || session->legs[2].state != LEG_NONE)
		return 0;
	fill_leg(up, &far);
	up->state = LEG_HANDSHAKE;
	fill_leg(&made, &near);
	made.state = LEG_HANDSHAKE;
	memcpy(&heard, near.info + AT_BYTES_ACKED, sizeof(heard));
	made.out_base = heard;
	made.consumed = bytes_received(&near) - near.unread;
	*down = made;
	session->up.fin = session->down.fin = NO_FIN;
	session->up.edge = session->up.widest = word(&far, AT_SND_WND);
	session->down.edge = session->down.widest = word(&near, AT_SND_WND);
	if (resumable)
		session->flags |= SESSION_RESUMABLE;
	for (int number = 0; number < 2; number++) {
		memcpy(&keys[number], &session->legs[number], sizeof(keys[number]));
		values[number] = (struct flow){.slot = slot, .incarnation = session->incarnation, .leg = number};
	}
	return msocks_map_update_batch(flows, keys, values, &count, 0) == 0;
}

/* Takes both legs of such a pair over: what the reply has to do with is filled in, then as msocks_join. */
static int msocks_join_pair(int mobile, const void *reply, size_t size, int server, uintptr_t entry, uint32_t generation,
			    uint32_t early)
{
	struct session *session = (void *)entry;
	struct leg *leg = &session->legs[1];
	uint64_t offered = session->down.edge > size ? session->down.edge - size : 0;

	leg->generation = generation;
	leg->reply_length = size;
	leg->consumed -= early;
	session->down.edge = session->down.widest = session->mobile_edge = offered;
	return msocks_join(mobile, reply, size, server, entry, 1);
}
