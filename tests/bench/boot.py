#!/usr/bin/env python3
"""What vmdeck adds to a boot, beside a bare hypervisor in the same run.

    tests/bench/boot.py VMDECK IMAGE [ROUNDS]

IMAGE is an image that was pulled. A machine is made of it and started once; then, in turn, `vm start`
is timed to its end (the agent is ready), and the very same command line of QEMU, started by this
script on copies of the same disks, to the agent's word that it is ready. Then `vm run` of a command
to its first output, and `vm stop`. Works in the data directory of the environment; needs the machine
to itself for figures that mean something.
"""

import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time

NAME = "bench-boot"
# engine/protocol/src/handshake.rs: what the engine opens a connection with.
MAGIC = bytes([0xFE, 0xC0, 0xF9, 0xFF, 0xC1, 0xFB, 0xFD, 0xF8, 0xFF, 0xFA, 0xC0, 0xFC, 0xF9, 0xC1, 0xFD, 0xFF])

if len(sys.argv) < 3:
    sys.exit(__doc__)
vmdeck, image = os.path.abspath(sys.argv[1]), sys.argv[2]
rounds = int(sys.argv[3]) if len(sys.argv) > 3 else 7


def run(*arguments):
    result = subprocess.run([vmdeck, "--quiet", *arguments], capture_output=True, text=True)
    if result.returncode:
        sys.exit(f"{' '.join(arguments)}: {result.stderr}")
    return result.stdout


def timed(*arguments):
    begun = time.monotonic()
    run(*arguments)
    return time.monotonic() - begun


def command_line():
    """The hypervisor's program, arguments and folder, as vmdeck starts it."""
    run("vm", "start", NAME)
    pid = json.loads(run("vm", "show", NAME, "--output", "json"))["run"]["process"]["pid"]
    with open(f"/proc/{pid}/cmdline") as file:
        arguments = file.read().split("\0")[1:-1]
    folder, program = os.readlink(f"/proc/{pid}/cwd"), os.readlink(f"/proc/{pid}/exe")
    run("vm", "stop", NAME)
    return program, arguments, folder


def bare(program, arguments, folder):
    """Seconds from the start of the process to the agent's word that it is ready."""
    place = tempfile.mkdtemp(prefix="bench-", dir=os.path.dirname(folder))
    process = None
    try:
        for name in os.listdir(folder):
            if name.endswith(".qcow2") or name == "initrd":
                # As sparse as they are; what is being written elsewhere is not to be waited for.
                # Disks under the names that they have for a run (engine/src/vm/disk.rs).
                target = os.path.join(place, name if name == "initrd" else "run-" + name)
                subprocess.run(["cp", "--sparse=always", os.path.join(folder, name), target], check=True)
        os.sync()
        line, pairs = [], []
        for argument in arguments:
            argument = argument.replace(folder, place)
            if argument == "-S":
                continue  # vmdeck records the process before its guest runs; nobody does here.
            for monitor in ("launch", "journal"):
                if argument.startswith(f"socket,id={monitor},fd="):
                    pairs.append(socket.socketpair())
                    argument = f"socket,id={monitor},fd={pairs[-1][1].fileno()}"
            if "logfile=" in argument:
                argument = argument.split("logfile=")[0] + "logfile=console.log"
            line.append(argument)
        begun = time.monotonic()
        process = subprocess.Popen(
            [program, *line], cwd=place, pass_fds=[theirs.fileno() for _, theirs in pairs],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        channel = socket.socket(socket.AF_UNIX)
        path = os.path.join(place, "channel-0.sock")
        while True:
            try:
                channel.connect(path)
                break
            except (FileNotFoundError, ConnectionRefusedError):
                if process.poll() is not None:
                    sys.exit("the hypervisor did not start")
                time.sleep(0.002)
        channel.sendall(MAGIC + b"0" * 32)
        said = b""
        while b'"ready"' not in said:
            try:
                piece = channel.recv(65536)
            except ConnectionResetError:
                piece = b""
            if not piece:
                sys.exit("the hypervisor ended before its guest was ready")
            said = (said + piece)[-65536:]
        return time.monotonic() - begun
    finally:
        if process:
            process.kill()
            process.wait()
        shutil.rmtree(place)


def first_output():
    begun = time.monotonic()
    process = subprocess.Popen(
        [vmdeck, "--quiet", "vm", "run", image, "--rm", "--no-stdin", "--", "echo", "out"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    if process.stdout.readline() != b"out\n":
        sys.exit("vm run printed nothing")
    took = time.monotonic() - begun
    process.wait()
    return took


def show(what, times):
    print(f"{what:34} {statistics.median(times) * 1000:7.0f} ms"
          f"  ({min(times) * 1000:.0f} to {max(times) * 1000:.0f}, {len(times)} times)")


subprocess.run([vmdeck, "--quiet", "vm", "delete", "--force", NAME], capture_output=True)
try:
    run("vm", "create", NAME, "--image", image)
    qemu = command_line()
    starts, bares, stops, runs, creates = [], [], [], [], []
    for _ in range(rounds):
        bares.append(bare(*qemu))
        os.sync()
        starts.append(timed("vm", "start", NAME))
        stops.append(timed("vm", "stop", NAME))
        os.sync()
        runs.append(first_output())
        creates.append(timed("vm", "create", NAME + "-2", "--image", image))
        run("vm", "delete", NAME + "-2")
finally:
    subprocess.run([vmdeck, "--quiet", "vm", "delete", "--force", NAME], capture_output=True)
show("QEMU by hand, to ready", bares)
show("vm start, to ready", starts)
added = statistics.median(starts) - statistics.median(bares)
print(f"{'added by vmdeck':34} {added * 1000:7.0f} ms  ({added / statistics.median(bares) * 100:.1f} %)")
show("vm run, to the first output", runs)
show("vm create", creates)
show("vm stop of an idle guest", stops)
