#!/usr/bin/env python3
"""last_byte.py VMDECK [FILES [LAYERS]] [--runs N] [--dir DIR]: from the last byte of an image to its publication.

Makes an image with exactly FILES files (50,000) in LAYERS layers (1), serves it from a registry in this
file, which notes when vmdeck has read the last byte of the last layer (its socket is empty), and pulls
it N times (5). Printed are medians: wall clock from there to the end of the process, processor time
(user and system, of all threads) that vmdeck used in between, and what each phase of the operation
took. Processor time is what can be compared between machines that have other work to do.

Everything lies in DIR (/dev/shm). Needs nothing but python3.
"""
import argparse, gzip, hashlib, http.server, io, json, os, random, shutil, statistics, subprocess, tarfile, tempfile, threading, time

GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"


def text():
    """Bytes that pack as the files of a distribution do: a few MiB of this interpreter's library."""
    folder, found = os.path.dirname(os.__file__), b""
    for name in sorted(os.listdir(folder)):
        if name.endswith(".py"):
            with open(f"{folder}/{name}", "rb") as file:
                found += file.read()
    return found[: 8 << 20]


def layer(files, first, source):
    """A tar with so many files, 40 to a folder, of 1 B to 200 KiB, most of them small."""
    chance, archive = random.Random(first), io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for number in range(first, first + files):
            folder = f"usr/share/part-{number // 2000}/package-{number // 40}"
            if number % 40 == 0:
                info = tarfile.TarInfo(folder)
                info.type, info.mode, info.mtime = tarfile.DIRTYPE, 0o755, 1_700_000_000
                tar.addfile(info)
            info = tarfile.TarInfo(f"{folder}/some-file-of-a-package-{number}.txt")
            info.size = min(1 + int(chance.lognormvariate(8, 1.5)), 200 << 10)
            info.mode, info.mtime = 0o644, 1_700_000_000 + number
            start = chance.randrange(len(source) - info.size)
            tar.addfile(info, io.BytesIO(source[start : start + info.size]))
    return archive.getvalue()


class Registry:
    """Answers GET for one image; knows when the last of its layers was sent."""

    def __init__(self, blobs, manifest, layers):
        self.sent, self.last, self.used, self.pid = 0, 0.0, 0.0, None
        registry, lock = self, threading.Lock()

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version, disable_nagle_algorithm = "HTTP/1.1", True

            def do_GET(self):
                name = self.path.rsplit("/", 1)[-1]
                body = blobs.get(name) if "/blobs/" in self.path else manifest if "/manifests/" in self.path else b"{}"
                self.send_response(200 if body is not None else 404)
                self.send_header("Content-Type", MANIFEST if body is manifest else "application/octet-stream")
                self.send_header("Content-Length", str(len(body or b"")))
                self.end_headers()
                self.wfile.write(body or b"")
                if name in layers:
                    self.wfile.flush()
                    while waiting(self.client_address[1], registry.port):
                        time.sleep(0.0005)
                    with lock:
                        registry.sent += 1
                        registry.last, registry.used = time.monotonic(), processor(registry.pid)

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.port = self.server.server_address[1]


def processor(pid):
    """Seconds of processor time a process has used: clock_getcpuclockid(3), as the kernel numbers it."""
    return time.clock_gettime((~pid << 3) | 2)


def waiting(client, server):
    """Bytes on their way from one port of this host to another, sent or not yet read (proc_net_tcp.rst)."""
    total, ends = 0, (f"{server:04X}", f"{client:04X}")
    with open("/proc/net/tcp") as file:
        for line in file:
            fields = line.split()
            # Not what the server has not read: a connection that the client has closed counts as a byte there.
            if (fields[1][-4:], fields[2][-4:]) == ends:
                total += int(fields[4].split(":")[0], 16)
            elif (fields[2][-4:], fields[1][-4:]) == ends:
                total += int(fields[4].split(":")[1], 16)
    return total


def phases(vmdeck, data):
    command = [vmdeck, "--output", "json", "operation", "list"]
    listed = json.loads(subprocess.run(command, env={**os.environ, "VMDECK_DATA_DIR": data}, capture_output=True, check=True).stdout)
    pull = next(operation for operation in listed if "pull" in json.dumps(operation["kind"]))
    return {phase["name"]: phase["ended_at"] - phase["started_at"] for phase in pull["phases"] if phase.get("ended_at")}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("vmdeck", type=os.path.realpath)
    parser.add_argument("files", type=int, nargs="?", default=50_000)
    parser.add_argument("layers", type=int, nargs="?", default=1)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--dir", default="/dev/shm")
    arguments = parser.parse_args()

    source, tars, blobs = text(), [], {}
    bounds = [arguments.files * index // arguments.layers for index in range(arguments.layers + 1)]
    for first, end in zip(bounds, bounds[1:]):
        tars.append(layer(end - first, first, source))
    named = lambda content: "sha256:" + hashlib.sha256(content).hexdigest()
    packed = [gzip.compress(tar, 6, mtime=0) for tar in tars]
    config = json.dumps({"architecture": {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine), "os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": [named(tar) for tar in tars]}}).encode()
    describe = lambda kind, content: {"mediaType": kind, "digest": named(content), "size": len(content)}
    manifest = json.dumps({"schemaVersion": 2, "mediaType": MANIFEST, "config": describe(CONFIG, config), "layers": [describe(GZIP, layer) for layer in packed]}).encode()
    blobs.update({named(content): content for content in [config, *packed]})
    size, stored = sum(map(len, tars)), sum(map(len, packed))
    del tars
    registry = Registry(blobs, manifest, {named(layer) for layer in packed})
    print(f"{arguments.files:,} files in {arguments.layers} layer(s), {stored >> 20} MiB packed, {size >> 20} MiB unpacked; load {os.getloadavg()[0]:.1f}")

    work = tempfile.mkdtemp(prefix="vmdeck-bench.", dir=arguments.dir)
    rows = []
    try:
        for _ in range(arguments.runs):
            shutil.rmtree(f"{work}/data", ignore_errors=True)
            registry.sent = 0
            command = [arguments.vmdeck, "--quiet", "image", "pull", f"127.0.0.1:{registry.port}/bench:latest", "--name", "bench"]
            begun = time.monotonic()
            process = subprocess.Popen(command, env={**os.environ, "VMDECK_DATA_DIR": f"{work}/data"}, stdout=subprocess.DEVNULL)
            registry.pid = process.pid
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
            ended = time.monotonic()
            # The thread that sent the last byte may hear of it only now.
            while registry.sent < arguments.layers and time.monotonic() < ended + 5:
                time.sleep(0.001)
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            assert process.returncode == 0, "the pull failed"
            assert registry.sent == arguments.layers, f"{registry.sent} of {arguments.layers} layers were asked for"
            used = usage.ru_utime + usage.ru_stime
            row = {"last byte to end": (ended - registry.last) * 1000, "processor since the last byte": (used - registry.used) * 1000}
            row |= {f"  phase {name}": took for name, took in phases(arguments.vmdeck, f"{work}/data").items()}
            row |= {"whole pull": (ended - begun) * 1000, "processor of the whole pull": used * 1000}
            rows.append(row)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    for name in rows[0]:
        values = sorted(row.get(name, 0) for row in rows)
        print(f"{name:32} {statistics.median(values):8.0f} ms   ({values[0]:.0f} to {values[-1]:.0f})")


main()
