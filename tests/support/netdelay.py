#!/usr/bin/env python3
"""Two network namespaces joined by a link that delays every packet, for counting round trips with real TCP.

    netdelay.py 50 NAME   50 ms each way; prints "ready" and runs until its input ends, then removes the namespaces
    ip netns exec NAME-near CMD     the client's side, 10.99.0.2
    ip netns exec NAME-far  CMD     the server's side, 10.99.0.1 (start sshd here, ListenAddress 10.99.0.1)

Unlike a TCP proxy it delays SYN, ACK and FIN too, so Nagle, delayed ACK and connection set-up cost what they cost on a real line.
Round trips of a command = (time at 100 ms - time at 25 ms) / 150 ms, taking the minimum of several runs of each. Needs root and /dev/net/tun.
"""
import fcntl, heapq, os, select, signal, struct, subprocess, sys, time

TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
def sides(name):
    return ((name + "-near", name + "n", "10.99.0.2", "10.99.0.1"), (name + "-far", name + "f", "10.99.0.1", "10.99.0.2"))

def ip(*args, check=True):
    # In a session of its own no Ctrl-C ends it: half a namespace could not be removed.
    subprocess.run(["ip", *args], check=check, stderr=None if check else subprocess.DEVNULL, start_new_session=True)

def side(namespace, device, address, peer):
    """Creates a namespace with one end of the link in it; returns the fd that its packets pass through."""
    ip("netns", "add", namespace)
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", device.encode(), IFF_TUN | IFF_NO_PI))
    ip("link", "set", device, "netns", namespace)
    ip("-n", namespace, "addr", "add", address, "peer", peer, "dev", device)
    ip("-n", namespace, "link", "set", device, "up")
    ip("-n", namespace, "link", "set", "lo", "up")
    return fd

def relay(near, far, delay, ended):
    waiting, count = [], 0
    while True:
        pause = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
        for fd in select.select([near, far, 0, ended], [], [], pause)[0]:
            if fd in (0, ended):
                return
            while True:
                try:
                    packet = os.read(fd, 70000)
                except BlockingIOError:
                    break
                count += 1
                heapq.heappush(waiting, (time.monotonic() + delay, count, far if fd == near else near, packet))
        while waiting and waiting[0][0] <= time.monotonic():
            _, _, fd, packet = heapq.heappop(waiting)
            try:
                os.write(fd, packet)
            except OSError:
                pass

def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    # A signal is heard between two packets alone, so that it never comes while something is made or removed.
    ended, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake)
    for ending in signal.SIGTERM, signal.SIGINT:
        signal.signal(ending, lambda *_: None)
    try:
        near, far = (side(*s) for s in sides(sys.argv[2]))
        print("ready", flush=True)
        relay(near, far, float(sys.argv[1]) / 1000, ended)
    finally:
        for namespace, *_ in sides(sys.argv[2]):
            ip("netns", "del", namespace, check=False)

main()
