/* The part of the extension module that is easier said in C: structures with options, and libbpf's log. */

#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <bpf/bpf.h>
#include <bpf/btf.h>
#include <bpf/libbpf.h>

/* ---- libbpf's log: a verifier's log can have megabytes, and its end is what matters ---- */

#define LOG_LIMIT (16u << 20)

static pthread_mutex_t log_lock = PTHREAD_MUTEX_INITIALIZER;
static char *log_text;
static size_t log_used, log_room;

static int collect(enum libbpf_print_level level, const char *format, va_list arguments)
{
	va_list again;
	int length;

	if (level == LIBBPF_DEBUG)
		return 0;
	va_copy(again, arguments);
	length = vsnprintf(NULL, 0, format, again);
	va_end(again);
	if (length <= 0)
		return 0;
	pthread_mutex_lock(&log_lock);
	if (log_used + length < LOG_LIMIT) {
		if (log_used + length + 1 > log_room) {
			size_t room = 2 * log_room + length + 1;
			char *larger = realloc(log_text, room);

			if (larger) {
				log_text = larger;
				log_room = room;
			}
		}
		if (log_used + length + 1 <= log_room) {
			vsnprintf(log_text + log_used, length + 1, format, arguments);
			log_used += length;
		}
	}
	pthread_mutex_unlock(&log_lock);
	return 0;
}

static void msocks_start(void)
{
	libbpf_set_print(collect);
}

static void msocks_log_clear(void)
{
	pthread_mutex_lock(&log_lock);
	free(log_text);
	log_text = NULL;
	log_used = log_room = 0;
	pthread_mutex_unlock(&log_lock);
}

/* A copy, for the caller to free(). NULL where there is nothing. */
static char *msocks_log(size_t *length)
{
	char *copy = NULL;

	pthread_mutex_lock(&log_lock);
	*length = log_used;
	if (log_used) {
		copy = malloc(log_used);
		if (copy)
			memcpy(copy, log_text, log_used);
		else
			*length = 0;
	}
	pthread_mutex_unlock(&log_lock);
	return copy;
}

/* ---- what the kernel says of an object ---- */

static int msocks_map_info(int fd, uint32_t *type, uint32_t *key_size, uint32_t *value_size, uint32_t *max_entries,
			   uint32_t *flags, uint32_t *id, char name[16])
{
	struct bpf_map_info info = {};
	uint32_t size = sizeof(info);
	int error = bpf_obj_get_info_by_fd(fd, &info, &size);

	if (error)
		return error;
	*type = info.type;
	*key_size = info.key_size;
	*value_size = info.value_size;
	*max_entries = info.max_entries;
	*flags = info.map_flags;
	*id = info.id;
	memcpy(name, info.name, 16);
	return 0;
}

static int msocks_program_info(int fd, uint32_t *id, uint32_t *type, uint32_t *verified, char name[16],
			       unsigned char tag[8])
{
	struct bpf_prog_info info = {};
	uint32_t size = sizeof(info);
	int error = bpf_obj_get_info_by_fd(fd, &info, &size);

	if (error)
		return error;
	*id = info.id;
	*type = info.type;
	*verified = info.verified_insns;
	memcpy(name, info.name, 16);
	memcpy(tag, info.tag, 8);
	return 0;
}

/* struct bpf_link_info as Linux 6.6 has it, where tcx came in; headers may be older. */
struct link_info {
	uint32_t type, id, program_id, pad;
	struct {
		uint32_t ifindex, attach_type;
	} tcx;
	uint64_t more[8];
};

static int msocks_link_info(int fd, uint32_t *id, uint32_t *program_id, uint32_t *ifindex)
{
	struct link_info info = {};
	uint32_t size = sizeof(info);
	int error = bpf_obj_get_info_by_fd(fd, &info, &size);

	if (error)
		return error;
	*id = info.id;
	*program_id = info.program_id;
	*ifindex = info.tcx.ifindex;
	return 0;
}

/* ---- tcx ---- */

static int msocks_link_create(int program_fd, int ifindex, int attach_type, uint32_t flags)
{
	LIBBPF_OPTS(bpf_link_create_opts, options, .flags = flags);

	return bpf_link_create(program_fd, ifindex, attach_type, &options);
}

static int msocks_link_update(int link_fd, int program_fd)
{
	return bpf_link_update(link_fd, program_fd, NULL);
}

/* ---- clsact ---- */

static int msocks_clsact_create(int ifindex)
{
	LIBBPF_OPTS(bpf_tc_hook, hook, .ifindex = ifindex, .attach_point = BPF_TC_INGRESS | BPF_TC_EGRESS);

	return bpf_tc_hook_create(&hook);
}

static int msocks_clsact_destroy(int ifindex)
{
	LIBBPF_OPTS(bpf_tc_hook, hook, .ifindex = ifindex, .attach_point = BPF_TC_INGRESS | BPF_TC_EGRESS);

	return bpf_tc_hook_destroy(&hook);
}

static int msocks_filter_attach(int ifindex, int egress, int program_fd, uint32_t handle, uint32_t priority)
{
	LIBBPF_OPTS(bpf_tc_hook, hook, .ifindex = ifindex, .attach_point = egress ? BPF_TC_EGRESS : BPF_TC_INGRESS);
	LIBBPF_OPTS(bpf_tc_opts, options, .handle = handle, .priority = priority, .prog_fd = program_fd,
		    .flags = BPF_TC_F_REPLACE);

	return bpf_tc_attach(&hook, &options);
}

static int msocks_filter_detach(int ifindex, int egress, uint32_t handle, uint32_t priority)
{
	LIBBPF_OPTS(bpf_tc_hook, hook, .ifindex = ifindex, .attach_point = egress ? BPF_TC_EGRESS : BPF_TC_INGRESS);
	LIBBPF_OPTS(bpf_tc_opts, options, .handle = handle, .priority = priority);

	return bpf_tc_detach(&hook, &options);
}

static int msocks_filter_query(int ifindex, int egress, uint32_t handle, uint32_t priority, uint32_t *program_id)
{
	LIBBPF_OPTS(bpf_tc_hook, hook, .ifindex = ifindex, .attach_point = egress ? BPF_TC_EGRESS : BPF_TC_INGRESS);
	LIBBPF_OPTS(bpf_tc_opts, options, .handle = handle, .priority = priority);
	int error = bpf_tc_query(&hook, &options);

	*program_id = error ? 0 : options.prog_id;
	return error;
}

/* ---- ring buffers: all that has come is read at once, for a call from C into Python costs more than a record ---- */

#define KEPT_ROOM (64u << 10)

struct msocks_ring {
	struct ring_buffer *ring;
	char *records; /* of the last reading: the length of each in four bytes, then the record */
	size_t used, room;
};

static int keep_record(void *context, void *data, size_t size)
{
	struct msocks_ring *ring = context;
	size_t end = ring->used + sizeof(uint32_t) + size;
	uint32_t length = size;

	if (end > ring->room) {
		size_t room = 2 * end;
		char *larger = realloc(ring->records, room);

		if (!larger)
			return -ENOMEM;
		ring->records = larger;
		ring->room = room;
	}
	memcpy(ring->records + ring->used, &length, sizeof(length));
	memcpy(ring->records + ring->used + sizeof(length), data, size);
	ring->used = end;
	return 0;
}

/* NULL, and errno, where it cannot be read. */
static struct msocks_ring *msocks_ring_open(int fd)
{
	struct msocks_ring *ring = calloc(1, sizeof(*ring));

	if (!ring)
		return NULL;
	ring->ring = ring_buffer__new(fd, keep_record, ring, NULL);
	if (!ring->ring) {
		int error = errno;

		free(ring);
		errno = error;
		return NULL;
	}
	return ring;
}

/*
 * How many records there were, or a negated error number.
 *
 * The kernel wakes the reader only if it sees that everything before a new record has been read. Without a fence the
 * reader may look for the next record before its own position has become visible: then neither side sees the other,
 * and whoever waits for a change, as an edge-triggered epoll does, is not told of this record or any later one.
 */
static int msocks_ring_read(struct msocks_ring *ring)
{
	int count = 0, more;

	ring->used = 0;
	if (ring->room > KEPT_ROOM) {
		free(ring->records);
		ring->records = NULL;
		ring->room = 0;
	}
	do {
		__atomic_thread_fence(__ATOMIC_SEQ_CST);
		more = ring_buffer__consume(ring->ring);
		if (more < 0)
			return more;
		count += more;
	} while (more);
	return count;
}

static const char *msocks_ring_records(const struct msocks_ring *ring, size_t *size)
{
	*size = ring->used;
	return ring->records;
}

static void msocks_ring_close(struct msocks_ring *ring)
{
	if (!ring)
		return;
	ring_buffer__free(ring->ring);
	free(ring->records);
	free(ring);
}

/* ---- the rest ---- */

static int msocks_map_update_batch(int fd, const void *keys, const void *values, uint32_t *count, uint64_t flags)
{
	LIBBPF_OPTS(bpf_map_batch_opts, options, .elem_flags = flags);

	return bpf_map_update_batch(fd, keys, values, count, &options);
}

static int msocks_test_run(int program_fd, const void *data_in, uint32_t size_in, void *data_out, uint32_t *size_out,
			   const void *ctx_in, uint32_t ctx_size_in, void *ctx_out, uint32_t *ctx_size_out,
			   int repeat, uint32_t *verdict, uint32_t *duration_ns)
{
	LIBBPF_OPTS(bpf_test_run_opts, options, .data_in = data_in, .data_size_in = size_in, .data_out = data_out,
		    .data_size_out = *size_out, .ctx_in = ctx_in, .ctx_size_in = ctx_size_in, .ctx_out = ctx_out,
		    .ctx_size_out = *ctx_size_out, .repeat = repeat);
	int error = bpf_prog_test_run_opts(program_fd, &options);

	*size_out = options.data_size_out;
	*ctx_size_out = options.ctx_size_out;
	*verdict = options.retval;
	*duration_ns = options.duration;
	return error;
}
