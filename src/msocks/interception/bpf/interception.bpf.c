// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
/*
 * `msocks run`, `msocks transparent`: TCP connections of one control group, which may be that of the whole host, go to
 * the agent instead of where the program meant them to go.
 *
 * connect4, connect6: the destination is replaced by the agent's port on loopback, and kept with the socket.
 * egress: the SYN is held back and told to the keeper. Nobody listens at the agent's port: when the far side has
 * answered, the agent connects to the program's port, and two SYNs that cross make one connection (simultaneous open,
 * RFC 9293 section 3.5). So connect() ends when, and as, the real connection does.
 * getpeername4, getpeername6: the program is shown the destination that it meant.
 * sendmsg, recvmsg: where names shall be resolved by the proxy, questions to name servers go to the keeper.
 *
 * docs/explanation/any-program.md explains the whole.
 */
#include <stdbool.h>

#include <linux/bpf.h>
#include <linux/in.h>
#include <linux/tcp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "layout.h"

#define STREAM 1	/* SOCK_STREAM; the C library's headers are not for eBPF */
#define ALLOW 1
#define HOLD 0
#define REFUSE 0	/* EPERM */
#define DNS 53
#define MULTIPATH 262		/* IPPROTO_MPTCP */
#define NO_SUCH_PROTOCOL 93	/* EPROTONOSUPPORT */
#define LOOPBACK bpf_htonl(0x7f000001)
#define MAPPED bpf_htonl(0xffff)
#define IPV6_HEADER 40
#define TCP_SEQUENCE 4

/* Kept with a socket that was redirected; goes with it. */
struct meant {
	struct address destination;
	__be16 port;
	__u16 pad;
	__u32 pid, uid;
	char comm[COMM_BYTES];
};

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct meant);
} redirected SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct settings);
} run SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1024);
	__type(key, struct excluded);
	__type(value, __u8);
} exclusions SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 256 * 1024);
} attempts SEC(".maps");

/* For the BTF: a structure that no map names. */
struct attempt told __attribute__((unused));

static __always_inline bool is_mapped(const struct address *address)
{
	return !address->words[0] && !address->words[1] && address->words[2] == MAPPED;
}

/* Loopback, "this host", link-local (the zone means nothing to the proxy), multicast and broadcast. */
static __always_inline bool is_near(const struct address *address)
{
	__u32 first = bpf_ntohl(address->words[0]);

	if (is_mapped(address)) {
		__u32 ipv4 = bpf_ntohl(address->words[3]);

		return ipv4 >> 24 == 127 || ipv4 >> 24 == 0 || ipv4 >> 16 == 0xa9fe || ipv4 >> 28 >= 0xe;
	}
	if (!address->words[0] && !address->words[1] && !address->words[2])
		return bpf_ntohl(address->words[3]) <= 1;
	return first >> 22 == 0xfe80 >> 6 || first >> 24 == 0xff;
}

/* 198.18.0.0/15 (RFC 2544) and 100::/64 (RFC 6666): the resolver gives them to names, and no host has them. */
static __always_inline bool is_of_name(const struct address *address)
{
	if (is_mapped(address))
		return bpf_ntohl(address->words[3]) >> 17 == 0xc6120000 >> 17;
	return address->words[0] == bpf_htonl(0x01000000) && !address->words[1];
}

static __always_inline struct settings *settings_for(struct bpf_sock_addr *ctx)
{
	__u32 zero = 0;
	struct settings *settings = bpf_map_lookup_elem(&run, &zero);

	if (!settings || !settings->enabled || !ctx->sk || bpf_get_netns_cookie(ctx) != settings->netns_cookie)
		return 0;
	return settings;
}

static __always_inline struct meant *remember(struct bpf_sock_addr *ctx, const struct address *destination)
{
	struct meant *meant = bpf_sk_storage_get(&redirected, ctx->sk, 0, BPF_SK_STORAGE_GET_F_CREATE);

	if (meant) {
		meant->destination = *destination;
		meant->port = ctx->user_port;
	}
	return meant;
}

/* Decide about a datagram, or a socket for them. Returns the resolver's port, 0 to leave it alone, -1 to refuse it. */
static __always_inline int resolve(struct bpf_sock_addr *ctx, const struct address *destination, bool by_ipv4)
{
	struct settings *settings = settings_for(ctx);

	if (!settings)
		return 0;
	if (settings->dns4 && ctx->user_port == bpf_htons(DNS)) {
		__be16 port = by_ipv4 ? settings->dns4 : settings->dns6;

		return port && remember(ctx, destination) ? port : -1;
	}
	if (settings->dns4 && is_of_name(destination))
		return -1;	/* so that QUIC gives way to TCP at once */
	return settings->no_udp && !is_near(destination) ? -1 : 0;
}

/* Decide about a connect(); remember what was meant. Returns the agent's port, 0 to leave it alone, -1 to refuse it. */
static __always_inline int redirect(struct bpf_sock_addr *ctx, const struct address *destination, bool by_ipv4)
{
	struct excluded key = { .prefix_bits = 128, .address = *destination };
	struct settings *settings;
	struct meant *meant;
	__be16 port;

	if (ctx->protocol == IPPROTO_UDP)
		return resolve(ctx, destination, by_ipv4);
	if (ctx->type != STREAM || ctx->protocol != IPPROTO_TCP)
		return 0;
	settings = settings_for(ctx);
	if (!settings)
		return 0;
	port = by_ipv4 ? settings->port4 : settings->port6;
	/* Who names an interface means it; and loopback is not reached through it. */
	if (!port || ctx->sk->bound_dev_if || is_near(destination) || bpf_map_lookup_elem(&exclusions, &key)) {
		bpf_sk_storage_delete(&redirected, ctx->sk);	/* the socket may have been connected before */
		return settings->dns4 && ctx->user_port == bpf_htons(DNS) ? -1 : 0;
	}
	meant = remember(ctx, destination);
	if (!meant)
		return -1;
	meant->pid = bpf_get_current_pid_tgid() >> 32;
	meant->uid = bpf_get_current_uid_gid();
	bpf_get_current_comm(meant->comm, sizeof(meant->comm));
	return port;
}

/*
 * Linux has no simultaneous open for Multipath TCP, so such a socket could not be answered. The program is told what a
 * host without Multipath TCP tells it, and takes TCP.
 */
SEC("cgroup/sock_create")
int msocks_sock_create(struct bpf_sock *ctx)
{
	struct settings *settings;
	__u32 zero = 0;

	if (ctx->protocol != MULTIPATH)
		return ALLOW;
	settings = bpf_map_lookup_elem(&run, &zero);
	if (!settings || !settings->enabled || bpf_get_netns_cookie(ctx) != settings->netns_cookie)
		return ALLOW;
	bpf_set_retval(-NO_SUCH_PROTOCOL);
	return REFUSE;
}

static __always_inline int send_to4(struct bpf_sock_addr *ctx, int port)
{
	if (port > 0) {
		ctx->user_ip4 = LOOPBACK;
		ctx->user_port = port;
	}
	return port < 0 ? REFUSE : ALLOW;
}

static __always_inline int send_to6(struct bpf_sock_addr *ctx, int port, bool mapped)
{
	if (port > 0) {
		ctx->user_ip6[0] = 0;
		ctx->user_ip6[1] = 0;
		ctx->user_ip6[2] = mapped ? MAPPED : 0;
		ctx->user_ip6[3] = mapped ? LOOPBACK : bpf_htonl(1);
		ctx->user_port = port;
	}
	return port < 0 ? REFUSE : ALLOW;
}

SEC("cgroup/connect4")
int msocks_connect4(struct bpf_sock_addr *ctx)
{
	struct address destination = { .words = { 0, 0, MAPPED, ctx->user_ip4 } };
	int port = redirect(ctx, &destination, true);

	return send_to4(ctx, port);
}

SEC("cgroup/connect6")
int msocks_connect6(struct bpf_sock_addr *ctx)
{
	struct address destination = {
		.words = { ctx->user_ip6[0], ctx->user_ip6[1], ctx->user_ip6[2], ctx->user_ip6[3] }
	};
	bool mapped = is_mapped(&destination);
	int port = redirect(ctx, &destination, mapped);

	return send_to6(ctx, port, mapped);
}

SEC("cgroup/sendmsg4")
int msocks_sendmsg4(struct bpf_sock_addr *ctx)
{
	struct address destination = { .words = { 0, 0, MAPPED, ctx->user_ip4 } };

	return send_to4(ctx, resolve(ctx, &destination, true));
}

SEC("cgroup/sendmsg6")
int msocks_sendmsg6(struct bpf_sock_addr *ctx)
{
	struct address destination = {
		.words = { ctx->user_ip6[0], ctx->user_ip6[1], ctx->user_ip6[2], ctx->user_ip6[3] }
	};
	bool mapped = is_mapped(&destination);

	return send_to6(ctx, resolve(ctx, &destination, mapped), mapped);
}

static __always_inline int show_meant4(struct bpf_sock_addr *ctx)
{
	struct meant *meant = ctx->sk ? bpf_sk_storage_get(&redirected, ctx->sk, 0, 0) : 0;

	if (meant) {
		ctx->user_ip4 = meant->destination.words[3];
		ctx->user_port = meant->port;
	}
	return ALLOW;
}

SEC("cgroup/getpeername4")
int msocks_getpeername4(struct bpf_sock_addr *ctx)
{
	return show_meant4(ctx);
}

static __always_inline bool is_of_resolver(struct bpf_sock_addr *ctx)
{
	struct settings *settings = settings_for(ctx);

	return settings && settings->dns4 && (ctx->user_port == settings->dns4 || ctx->user_port == settings->dns6);
}

/* A resolver looks whether the answer comes from the name server that it has asked. */
SEC("cgroup/recvmsg4")
int msocks_recvmsg4(struct bpf_sock_addr *ctx)
{
	return is_of_resolver(ctx) ? show_meant4(ctx) : ALLOW;
}

static __always_inline int show_meant6(struct bpf_sock_addr *ctx)
{
	struct meant *meant = ctx->sk ? bpf_sk_storage_get(&redirected, ctx->sk, 0, 0) : 0;

	if (meant) {
		ctx->user_ip6[0] = meant->destination.words[0];
		ctx->user_ip6[1] = meant->destination.words[1];
		ctx->user_ip6[2] = meant->destination.words[2];
		ctx->user_ip6[3] = meant->destination.words[3];
		ctx->user_port = meant->port;
	}
	return ALLOW;
}

SEC("cgroup/getpeername6")
int msocks_getpeername6(struct bpf_sock_addr *ctx)
{
	return show_meant6(ctx);
}

SEC("cgroup/recvmsg6")
int msocks_recvmsg6(struct bpf_sock_addr *ctx)
{
	return is_of_resolver(ctx) ? show_meant6(ctx) : ALLOW;
}

/* In SYN_SENT a socket sends SYNs alone. After the agent's SYN has come it is in SYN_RECEIVED, and passes. */
SEC("cgroup_skb/egress")
int msocks_egress(struct __sk_buff *skb)
{
	struct bpf_sock *sk = skb->sk;
	struct attempt *attempt;
	struct meant *meant;
	__u32 header, sequence;
	__u8 first;

	if (!sk || sk->state != BPF_TCP_SYN_SENT)
		return ALLOW;
	sk = bpf_sk_fullsock(sk);
	meant = sk ? bpf_sk_storage_get(&redirected, sk, 0, 0) : 0;
	if (!meant)
		return ALLOW;
	if (bpf_skb_load_bytes(skb, 0, &first, sizeof(first)))
		return HOLD;
	header = first >> 4 == 4 ? (first & 0xf) * 4 : IPV6_HEADER;
	if (bpf_skb_load_bytes(skb, header + TCP_SEQUENCE, &sequence, sizeof(sequence)))
		return HOLD;
	attempt = bpf_ringbuf_reserve(&attempts, sizeof(*attempt), 0);
	if (!attempt)
		return HOLD;	/* it is sent again */
	attempt->cookie = bpf_get_socket_cookie(skb);
	attempt->is_ipv6 = first >> 4 == 6;
	if (attempt->is_ipv6)
		bpf_skb_load_bytes(skb, 8, &attempt->local, sizeof(attempt->local));
	else {
		attempt->local.words[0] = 0;
		attempt->local.words[1] = 0;
		attempt->local.words[2] = MAPPED;
		bpf_skb_load_bytes(skb, 12, &attempt->local.words[3], sizeof(attempt->local.words[3]));
	}
	attempt->local_port = bpf_htons(sk->src_port);
	attempt->sequence = sequence;
	attempt->destination = meant->destination;
	attempt->destination_port = meant->port;
	attempt->pid = meant->pid;
	attempt->uid = meant->uid;
	__builtin_memset(attempt->pad, 0, sizeof(attempt->pad));
	__builtin_memcpy(attempt->comm, meant->comm, sizeof(attempt->comm));
	bpf_ringbuf_submit(attempt, 0);
	return HOLD;
}

/* The kernel opens some helpers only to programs under its own licence. */
char _license[] SEC("license") = "GPL";
