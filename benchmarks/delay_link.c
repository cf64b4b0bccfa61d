/* A link between two network namespaces that delays every packet and loses some, for kernels without netem.
 *
 *     delay_link NETNS_A NAME_A NETNS_B NAME_B DELAY_US LOSS_PPM OFFLOAD
 *
 * Makes a TUN device in each namespace and moves each packet from one to the other, DELAY_US later, until it is
 * killed. LOSS_PPM packets per million are lost. With OFFLOAD=1 the devices accept packets of up to 64 KiB, like a
 * network card with segmentation offload, which is cheaper; a loss then affects a whole large packet.
 * Prints "up" once both devices exist; the caller sets their addresses.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

enum { LARGEST = 66000, BURST = 64 };

struct packet {
    struct packet *next;
    long due_ns;
    ssize_t size;
    char data[];
};

struct direction {
    int from, to;
};

static long delay_ns;
static unsigned loss_ppm;

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static long now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000L + now.tv_nsec;
}

/* Open a TUN device in a named namespace; the calling thread stays in that namespace. */
static int device_in(const char *netns, const char *name, int offload) {
    char path[256];
    snprintf(path, sizeof path, "/run/netns/%s", netns);
    int place = open(path, O_RDONLY | O_CLOEXEC);
    if (place < 0 || setns(place, CLONE_NEWNET)) fail(path);
    close(place);
    int device = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
    if (device < 0) fail("/dev/net/tun");
    struct ifreq request = {0};
    request.ifr_flags = (short)(IFF_TUN | IFF_NO_PI | (offload ? IFF_VNET_HDR : 0));
    strncpy(request.ifr_name, name, IFNAMSIZ - 1);
    if (ioctl(device, TUNSETIFF, &request)) fail("TUNSETIFF");
    if (offload && ioctl(device, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4)) fail("TUNSETOFFLOAD");
    return device;
}

/* Carry one direction forever: packets wait in order in a list, since all are delayed alike. */
static void *carry(void *argument) {
    struct direction *way = argument;
    struct packet *first = NULL, **last = &first;
    unsigned seed = (unsigned)now_ns();
    static __thread char buffer[LARGEST];
    for (;;) {
        while (first && first->due_ns <= now_ns()) {
            struct packet *ready = first;
            if (write(way->to, ready->data, (size_t)ready->size) < 0 && errno != EAGAIN && errno != EIO) fail("write");
            first = ready->next;
            if (!first) last = &first;
            free(ready);
        }
        long wait_ns = first ? first->due_ns - now_ns() : 1000000000L;
        struct timespec wait = {wait_ns > 0 ? wait_ns / 1000000000L : 0, wait_ns > 0 ? wait_ns % 1000000000L : 0};
        struct pollfd readable = {way->from, POLLIN, 0};
        if (ppoll(&readable, 1, &wait, NULL) <= 0) continue;
        for (int count = 0; count < BURST; count++) {
            ssize_t size = read(way->from, buffer, sizeof buffer);
            if (size <= 0) break;
            if (loss_ppm && (unsigned)(rand_r(&seed) % 1000000) < loss_ppm) continue;
            struct packet *packet = malloc(sizeof *packet + (size_t)size);
            if (!packet) fail("malloc");
            packet->next = NULL;
            packet->due_ns = now_ns() + delay_ns;
            packet->size = size;
            memcpy(packet->data, buffer, (size_t)size);
            *last = packet;
            last = &packet->next;
        }
    }
    return NULL;
}

int main(int count, char **words) {
    if (count != 8) {
        fprintf(stderr, "usage: %s NETNS_A NAME_A NETNS_B NAME_B DELAY_US LOSS_PPM OFFLOAD\n", words[0]);
        return 2;
    }
    delay_ns = atol(words[5]) * 1000;
    loss_ppm = (unsigned)atol(words[6]);
    int offload = atoi(words[7]);
    int a = device_in(words[1], words[2], offload), b = device_in(words[3], words[4], offload);
    struct direction there = {a, b}, back = {b, a};
    pthread_t thread;
    if (pthread_create(&thread, NULL, carry, &there)) fail("pthread_create");
    puts("up");
    fflush(stdout);
    carry(&back);
    return 0;
}
