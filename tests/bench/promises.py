#!/usr/bin/env python3
"""promises.py VMDECK LAYOUT [PART...]: what pull.sh does not measure, in one run on tmpfs.

  again     the same digest under another name, median of 5
  eight     8 images at once that share all layers but a small one: bytes fetched beside distinct bytes
  memory    peak resident memory of a pull
  written   bytes the pull hands to the kernel, beside what image and cached blobs take on the disk
  slow      a link of 200 Mbit/s: from the last byte to the end of the pull

`eight` needs room for eight images. Without parts all are measured. Needs docker-registry and skopeo. The proxy that limits the link and counts is in this file.
"""
import hashlib, json, os, shutil, signal, socket, statistics, subprocess, sys, tempfile, threading, time


class Proxy:
    """Passes connections on to a port; counts what comes back, at a rate where one is given."""

    def __init__(self, port):
        self.upstream, self.rate, self.count, self.last = port, None, 0, 0.0
        self.lock, self.due = threading.Lock(), 0.0
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            client, _ = self.socket.accept()
            server = socket.create_connection(("127.0.0.1", self.upstream))
            threading.Thread(target=self.pump, args=(client, server, False), daemon=True).start()
            threading.Thread(target=self.pump, args=(server, client, True), daemon=True).start()

    def pump(self, source, target, counts):
        try:
            while data := source.recv(1 << 16):
                if counts and self.rate:
                    with self.lock:
                        self.due = max(self.due, time.monotonic()) + len(data) / self.rate
                        due = self.due
                    time.sleep(max(0.0, due - time.monotonic()))
                target.sendall(data)
                if counts:
                    with self.lock:
                        self.count += len(data)
                        self.last = time.monotonic()
            target.shutdown(socket.SHUT_WR)
        except OSError:
            source.close(), target.close()


def wanted(part):
    return part in sys.argv[3:] or len(sys.argv) == 3


def pull(name, reference):
    """Starts a pull."""
    return subprocess.Popen(
        [vmdeck, "--quiet", "image", "pull", reference, "--name", name],
        env={**os.environ, "VMDECK_DATA_DIR": data},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(process):
    """Waits for a pull: bytes written by system calls, peak memory in bytes, seconds of processor."""
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    with open(f"/proc/{process.pid}/io") as file:
        written = int(dict(line.split(": ") for line in file)["wchar"])
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, f"the pull failed: {process.stderr.read()}"
    process.stderr.close()
    return written, usage.ru_maxrss * 1024, usage.ru_utime + usage.ru_stime


def allocated(folder):
    total = 0
    for place, _, names in os.walk(folder):
        total += sum(os.stat(os.path.join(place, name)).st_blocks * 512 for name in names)
    return total


def forget():
    shutil.rmtree(data, ignore_errors=True)


def blob(layout, content):
    digest = hashlib.sha256(content).hexdigest()
    with open(f"{layout}/blobs/sha256/{digest}", "wb") as file:
        file.write(content)
    return {"digest": f"sha256:{digest}", "size": len(content)}


def variant(layout, number):
    """The image with a layer more, of one small file; returns the distinct bytes it adds."""
    import gzip, io, tarfile

    read = lambda digest: json.load(open(f"{layout}/blobs/{digest.replace(':', '/')}"))
    manifest = read(json.load(open(f"{layout}/index.json"))["manifests"][0]["digest"])
    config = read(manifest["config"]["digest"])
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        info = tarfile.TarInfo("variant")
        info.size = 1
        tar.addfile(info, io.BytesIO(b"%d" % number))
    config["rootfs"]["diff_ids"].append("sha256:" + hashlib.sha256(archive.getvalue()).hexdigest())
    kind = "application/vnd.oci.image.layer.v1.tar+gzip"
    layer = blob(layout, gzip.compress(archive.getvalue(), mtime=0))
    manifest["layers"].append({"mediaType": kind, **layer})
    manifest["config"].update(blob(layout, json.dumps(config).encode()))
    kind = manifest.get("mediaType", "application/vnd.oci.image.manifest.v1+json")
    entry = {"mediaType": kind, **blob(layout, json.dumps(manifest).encode())}
    entry["annotations"] = {"org.opencontainers.image.ref.name": f"v{number}"}
    return entry, layer["size"] + manifest["config"]["size"] + entry["size"]


def main():
    global data
    work = tempfile.mkdtemp(prefix="vmdeck-bench.", dir="/dev/shm")
    data, registry = f"{work}/data", None
    try:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        with open(f"{work}/registry.yml", "w") as file:
            file.write(
                "version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\n"
                f"storage: {{filesystem: {{rootdirectory: {work}/registry}}}}\nhttp: {{addr: '127.0.0.1:{port}'}}\n"
            )
        quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        registry = subprocess.Popen(["docker-registry", "serve", f"{work}/registry.yml"], **quiet)
        for _ in range(100):
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                time.sleep(0.1)
        layout = f"{work}/layout"
        shutil.copytree(source, layout, copy_function=os.link if os.stat(source).st_dev == os.stat(work).st_dev else shutil.copy)
        entries = [variant(layout, number) for number in range(8)]
        index = json.load(open(f"{layout}/index.json"))
        index["manifests"] = [{**index["manifests"][0], "annotations": {"org.opencontainers.image.ref.name": "latest"}}]
        index["manifests"] += [entry for entry, _ in entries]
        os.unlink(f"{layout}/index.json")
        json.dump(index, open(f"{layout}/index.json", "w"))
        for tag in ["latest"] + [f"v{number}" for number in range(8)]:
            command = ["skopeo", "copy", "--quiet", "--insecure-policy", "--dest-tls-verify=false"]
            subprocess.run(command + [f"oci:{layout}:{tag}", f"docker://127.0.0.1:{port}/bench:{tag}"], check=True)
        shutil.rmtree(layout)

        proxy = Proxy(port)
        reference = f"127.0.0.1:{proxy.port}/bench"
        print(f"load before: {os.getloadavg()[0]:.1f}")

        written, memory, _ = end(pull("first", f"{reference}:latest"))
        whole, kept = proxy.count, allocated(data)
        print(f"memory: {memory / 2**20:.0f} MiB")
        print(f"written: {written / 2**20:.0f} MiB by system calls, {kept / 2**20:.0f} MiB allocated: {written / kept:.2f}")

        again = []
        for number in range(5 if wanted("again") else 0):
            begun = time.monotonic()
            _, _, processor = end(pull(f"again{number}", f"{reference}:latest"))
            again.append(((time.monotonic() - begun) * 1000, processor * 1000))
        again and print("again: {:.0f} ms, {:.0f} ms of processor".format(*map(statistics.median, zip(*again))))

        forget()
        proxy.count, begun = 0, time.monotonic()
        eight = [pull(f"v{n}", f"{reference}:v{n}") for n in range(8 if wanted("eight") else 0)]
        memory = max((memory for _, memory, _ in map(end, eight)), default=0)
        distinct = whole + sum(size for _, size in entries)
        eight and print(f"eight: {time.monotonic() - begun:.1f} s, {proxy.count / distinct:.3f} of the distinct bytes fetched, {memory / 2**20:.0f} MiB each at most")

        forget()
        proxy.rate = 200e6 / 8
        begun = time.monotonic()
        wanted("slow") and end(pull("slow", f"{reference}:latest"))
        ended = time.monotonic()
        wanted("slow") and print(f"slow: {ended - begun:.1f} s, the end {(ended - proxy.last) * 1000:.0f} ms after the last byte")
        print(f"load after: {os.getloadavg()[0]:.1f}")
    finally:
        if registry:
            registry.send_signal(signal.SIGKILL)
            registry.wait()
        shutil.rmtree(work, ignore_errors=True)


vmdeck, source = map(os.path.realpath, sys.argv[1:3])
main()
