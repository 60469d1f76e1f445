/*
 * Preloaded into a program: its wall clock shows the machine's time and as many seconds more as stand in the file that
 * STEPPED_CLOCK names, 8 bytes in this machine's order. So do the kernel's stamps of what arrives, which are of the same
 * clock. The monotonic clock is left alone, as when a person or NTP sets the time.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const volatile int64_t *shift;
static int (*real_clock_gettime)(clockid_t, struct timespec *);
static ssize_t (*real_recvmsg)(int, struct msghdr *, int);

__attribute__((constructor)) static void begin(void)
{
	const char *path = getenv("STEPPED_CLOCK");
	int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
	void *mapped;

	real_clock_gettime = dlsym(RTLD_NEXT, "clock_gettime");
	real_recvmsg = dlsym(RTLD_NEXT, "recvmsg");
	if (fd < 0)
		return;
	mapped = mmap(NULL, sizeof(*shift), PROT_READ, MAP_SHARED, fd, 0);
	close(fd);
	if (mapped != MAP_FAILED)
		shift = mapped;
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
	int result;

	if (!real_clock_gettime) /* another library's constructor was earlier */
		real_clock_gettime = dlsym(RTLD_NEXT, "clock_gettime");
	result = real_clock_gettime(clock, now);
	if (!result && shift && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
		now->tv_sec += *shift;
	return result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
	struct timespec precise;
	int result = clock_gettime(CLOCK_REALTIME, &precise);

	(void)zone;
	now->tv_sec = precise.tv_sec;
	now->tv_usec = precise.tv_nsec / 1000;
	return result;
}

ssize_t recvmsg(int fd, struct msghdr *message, int flags)
{
	ssize_t result;
	struct cmsghdr *each;

	if (!real_recvmsg)
		real_recvmsg = dlsym(RTLD_NEXT, "recvmsg");
	result = real_recvmsg(fd, message, flags);
	if (result < 0 || !shift)
		return result;
	for (each = CMSG_FIRSTHDR(message); each; each = CMSG_NXTHDR(message, each))
		if (each->cmsg_level == SOL_SOCKET && each->cmsg_type == SCM_TIMESTAMPNS)
			((struct timespec *)CMSG_DATA(each))->tv_sec += *shift;
	return result;
}

time_t time(time_t *result)
{
	struct timespec precise;

	clock_gettime(CLOCK_REALTIME, &precise);
	if (result)
		*result = precise.tv_sec;
	return precise.tv_sec;
}
