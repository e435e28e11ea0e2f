"""Plays Compose's files on a machine that has no engine: what the tests call `docker`.

Images are built by podman, without an isolation of its own, and programs run from their image's root: chroot, overlay and bind
mounts, a network of their own. Played are: the image's and the file's entrypoint, command, environment and user, groups,
volumes with the owner that a new one takes, tmpfs, secrets, read-only roots, capabilities, no new privileges, the limit of core
files, names and networks, published ports, health checks, and the order of the start.

Not played, since they need an engine or a cgroup: limits of memory, the driver of logs, restarts (what ends is found by a test),
and the profiles of seccomp and AppArmor. A key that is in neither list ends this program, so that no file means more than is
tested.

It must run in namespaces of its own for mounts, processes and the network, which take everything with them when they end: `sandbox`
beside this file makes them. STEPWARD_CONTAINERS is a folder on a file system that can hold overlays.
"""

import functools
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import time

import yaml

HOME = pathlib.Path(os.environ["STEPWARD_CONTAINERS"])
NETWORK = "10.89.0"
PLAYED = {
    "image", "build", "command", "environment", "volumes", "ports", "expose", "cap_drop", "cap_add", "user", "group_add", "read_only",
    "security_opt", "ulimits", "tmpfs", "healthcheck", "depends_on", "secrets",
}
LEFT_OUT = {"restart", "logging", "mem_limit"}
# Those that a program has which was told nothing else.
CAPABILITIES = (
    "chown dac_override fowner fsetid kill setgid setuid setpcap net_bind_service net_raw sys_chroot mknod audit_write setfcap"
).split()


def main(arguments):
    match arguments:
        case ["compose", "build", *names]:
            build(names)
        case ["compose", "up", "--detach", *names]:
            up(names)
        case ["compose", "exec", "-T", name, *command]:
            sys.exit(subprocess.run(inside(name, command)).returncode)
        case ["compose", "cp", source, target]:
            copy(source, target)
        case ["compose", "logs", *names]:
            for name in names or compose()["services"]:
                print(log_of(name), end="")
        case ["compose", "restart", *names]:
            for name in names:
                stop(name)
            up(names)
        case ["build", "--file", file, "--tag", tag, context]:
            build_image(tag, "--file", file, context)
        case ["image", "mount", name]:
            print(root_of(name))
        case _:
            fail(f"cannot play `docker {shlex.join(arguments)}`")


def fail(message):
    sys.exit(f"docker.py: {message}")


@functools.cache
def compose():
    text = pathlib.Path("compose.yaml").read_text()
    text = re.sub(r"\$\{(\w+):-([^}]*)\}", lambda found: os.environ.get(found[1]) or found[2], text)
    whole = yaml.safe_load(text)
    known = {"name", "services", "volumes", "secrets"}
    for key in whole.keys() - known:
        if not key.startswith("x-"):
            fail(f"cannot play `{key}` of a file")
    for name, service in whole["services"].items():
        for key in service.keys() - PLAYED - LEFT_OUT:
            fail(f"cannot play `{key}` of the service {name}")
    return whole


def service_of(name):
    return compose()["services"][name]


# Images


def podman(*arguments, **options):
    # A driver that copies each layer would cost minutes.
    storage = ["--root", HOME / "storage", "--runroot", HOME / "run", "--storage-driver", "overlay", "--cgroup-manager", "cgroupfs"]
    return subprocess.run(["podman", *storage, *arguments], check=True, text=True, **options)


def build_image(tag, *arguments):
    # The format of OCI has no health checks.
    how = ["--isolation", "chroot", "--pull=never", "--format", "docker", "--quiet"]
    podman("build", *how, "--tag", f"localhost/{tag}", *arguments, stdout=subprocess.DEVNULL)


def bases():
    """What is given in place of the images that would be pulled, by build arguments."""
    if (HOME / "bases").exists():
        return
    roots, programs = pathlib.Path(os.environ["STEPWARD_ROOTS"]), pathlib.Path(os.environ["STEPWARD_PROGRAMS"])
    for name in ["runtime", "debian"]:
        podman("import", "--quiet", roots / f"{name}.tar", f"localhost/{name}", stdout=subprocess.DEVNULL)
    here = pathlib.Path(__file__).parent
    for target, tag in [("envoy", "envoy"), ("step-ca", step_ca())]:
        arguments = ["--build-arg", "DEBIAN_IMAGE=localhost/debian", "--build-arg", "RUNTIME_IMAGE=localhost/runtime"]
        build_image(tag, "--file", here / "Dockerfile", "--target", target, *arguments, programs)
    (HOME / "bases").touch()


def step_ca():
    return service_of("step-ca")["image"]


def build(names):
    bases()
    for name, service in compose()["services"].items():
        if "build" not in service or (names and name not in names):
            continue
        how = service["build"]
        for key in how.keys() - {"context", "dockerfile", "args"}:
            fail(f"cannot play `{key}` of the build of {name}")
        context = pathlib.Path(how["context"])
        runtime = "localhost/envoy" if name == "envoy" else "localhost/runtime"
        given = {**how.get("args", {}), "BUILD_IMAGE": "localhost/debian", "RUNTIME_IMAGE": runtime}
        arguments = [word for key, value in given.items() for word in ("--build-arg", f"{key}={value}")]
        build_image(service["image"], "--file", context / how["dockerfile"], *arguments, context)


@functools.cache
def inspected(image):
    return json.loads(podman("image", "inspect", f"localhost/{image}", stdout=subprocess.PIPE).stdout)[0]


def root_of(image):
    return podman("image", "mount", f"localhost/{image}", stdout=subprocess.PIPE).stdout.strip()


# Services


def up(names):
    bases()
    for name in names or compose()["services"]:
        start(name)


def start(name):
    if pid(name):
        return
    service = service_of(name)
    for other, needed in service.get("depends_on", {}).items():
        start(other)
        wait(other, needed["condition"])
    image = inspected(service["image"])["Config"]
    folder = HOME / name
    for part in ["upper", "work", "root"]:
        (folder / part).mkdir(parents=True, exist_ok=True)
    network(name, service)
    command = [*image.get("Entrypoint", []), *service.get("command", image.get("Cmd", []))]
    environment = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
    environment |= dict(word.split("=", 1) for word in image.get("Env", []))
    environment |= {key: str(value) for key, value in service.get("environment", {}).items()}
    (folder / "environment").write_text(json.dumps(environment))
    (folder / "ready").unlink(missing_ok=True)
    limit = "ulimit -c 0" if "core" in service.get("ulimits", {}) else "true"
    program = shlex.join(as_user(name, command))
    script = "\n".join(["set -e", *mounts(name, service), limit, f"touch {folder}/ready", f"exec {program}"])
    with open(folder / "log", "ab") as log:
        process = subprocess.Popen(
            ["nsenter", f"--net=/run/netns/{name}", "unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", script],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )
    (folder / "pid").write_text(str(process.pid))
    while process.poll() is None and not (folder / "ready").exists():
        time.sleep(0.02)
    if one_shot(name):
        (folder / "ended").write_text(str(process.wait()))


def one_shot(name):
    """Whether somebody waits for its end."""
    needs = [service.get("depends_on", {}).get(name) for service in compose()["services"].values()]
    return {"condition": "service_completed_successfully"} in needs


def mounts(name, service):
    """The commands that make a service's root, in a namespace of its own."""
    folder, image = HOME / name, root_of(service["image"])
    root = folder / "root"
    overlay = f"lowerdir={image},upperdir={folder / 'upper'},workdir={folder / 'work'}"
    yield "mount --make-rprivate /"
    yield f"mount -t overlay overlay -o {overlay} {root}"
    yield f"mkdir -p {root}/proc {root}/dev {root}/etc {root}/tmp {root}/run"
    yield f"mount -t proc proc {root}/proc"
    yield f"mount -t tmpfs -o mode=0755 tmpfs {root}/dev && mkdir -m 1777 {root}/dev/shm && mount -t tmpfs tmpfs {root}/dev/shm"
    for device in ["null", "zero", "full", "random", "urandom", "tty"]:
        yield f"touch {root}/dev/{device} && mount --bind /dev/{device} {root}/dev/{device}"
    hosts = "".join(f"{NETWORK}.{address(other)} {other}\n" for other in compose()["services"])
    for file, text in [("hosts", f"127.0.0.1 localhost\n{hosts}"), ("resolv.conf", "")]:
        (folder / file).write_text(text)
        yield from bind(folder / file, root / "etc" / file, True)
    for volume in service.get("volumes", []):
        source, target, *mode = volume.split(":")
        if mode not in ([], ["ro"]):
            fail(f"cannot play the volume {volume}")
        path = pathlib.Path(source).resolve() if source.startswith(".") else named(source, image + target)
        if not path.exists():
            fail(f"{path} is not there; an engine would make a folder for root of it")
        yield from bind(path, pathlib.Path(f"{root}{target}"), mode == ["ro"])
    for secret in service.get("secrets", []):
        yield from bind(pathlib.Path(compose()["secrets"][secret]["file"]).resolve(), root / "run/secrets" / secret, True)
    for place in service.get("tmpfs", []):
        path, _, options = place.partition(":")
        yield f"mkdir -p {root}{path} && mount -t tmpfs -o {options or 'mode=1777'} tmpfs {root}{path}"
    if service.get("read_only"):
        yield f"mount -o remount,bind,ro {root}"


def bind(source, target, read_only):
    yield f"mkdir -p {target}" if source.is_dir() else f"mkdir -p {target.parent} && touch {target}"
    yield f"mount --bind {shlex.quote(str(source))} {target}"
    if read_only:
        yield f"mount -o remount,bind,ro {target}"


def named(volume, covered):
    """The folder of a volume; a new one gets what the image has there, and its owner."""
    if volume not in compose()["volumes"]:
        fail(f"the file has no volume {volume}")
    path = HOME / "volumes" / volume
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        if os.path.isdir(covered):
            subprocess.run(["cp", "-a", covered, path], check=True)
        else:
            path.mkdir()
    return path


def as_user(name, command):
    """The command that runs a command in a service's root as its user, with its groups and capabilities."""
    service, folder = service_of(name), HOME / name
    image = inspected(service["image"])["Config"]
    user, group = identity(service.get("user") or image.get("User") or "0", root_of(service["image"]))
    groups = ",".join([group, *service.get("group_add", [])])
    kept = set() if "ALL" in service.get("cap_drop", []) else set(CAPABILITIES)
    kept |= {capability.lower() for capability in service.get("cap_add", [])}
    known = subprocess.run(["capsh", "--print"], check=True, text=True, stdout=subprocess.PIPE).stdout
    bounding = re.search(r"^Bounding set =(.*)$", known, re.M)[1].split(",")
    dropped = [word for word in bounding if word.removeprefix("cap_") not in kept]
    environment = json.loads((folder / "environment").read_text())
    words = ["env", "-i", *(f"{key}={value}" for key, value in environment.items()), "/sbin/capsh", f"--chroot={folder / 'root'}"]
    words += [f"--drop={','.join(dropped)}", f"--groups={groups}", f"--gid={group}"]
    for option in service.get("security_opt", []):
        if option != "no-new-privileges:true":
            fail(f"cannot play {option}")
        words.append("--no-new-privs")
    program = command[0] if command[0].startswith("/") else found(command[0], root_of(service["image"]))
    return [*words, f"--uid={user}", f"--shell={program}", "--", *command[1:]]


def found(program, root):
    for folder in ["/usr/local/bin", "/usr/bin", "/bin"]:
        if os.path.exists(f"{root}{folder}/{program}"):
            return f"{folder}/{program}"
    fail(f"{program} is not in PATH")


def identity(user, root):
    name, _, group = user.partition(":")
    if name.isdigit():
        return name, group or "0"
    for line in pathlib.Path(root, "etc/passwd").read_text().splitlines():
        fields = line.split(":")
        if fields[0] == name:
            return fields[2], group or fields[3]
    fail(f"the image has no user {name}")


def inside(name, command):
    first = pid(name)
    if not first:
        fail(f"{name} does not run:\n{log_of(name)}")
    return ["nsenter", f"--target={first}", "--mount", "--pid", "--net", *as_user(name, command)]


def pid(name):
    """The first process of a service, where it runs."""
    try:
        outer = (HOME / name / "pid").read_text()
        return pathlib.Path(f"/proc/{outer}/task/{outer}/children").read_text().split()[0]
    except (FileNotFoundError, ProcessLookupError, IndexError):
        return None


def log_of(name):
    file = HOME / name / "log"
    return file.read_text(errors="replace") if file.exists() else ""


def stop(name):
    if first := pid(name):
        os.kill(int(first), 15)
        while pid(name):
            time.sleep(0.05)


def wait(name, condition):
    if condition == "service_completed_successfully":
        if (code := (HOME / name / "ended").read_text()) != "0":
            fail(f"{name} ended with {code}:\n{log_of(name)}")
    elif condition == "service_healthy":
        check = inspected(service_of(name)["image"])["Healthcheck"]["Test"]
        command = check[1:] if check[0] == "CMD" else ["/bin/sh", "-c", *check[1:]]
        for _ in range(300):
            said = subprocess.run(inside(name, command), text=True, capture_output=True)
            if said.returncode == 0:
                return
            time.sleep(0.1)
        fail(f"{name} is not healthy: {said.stdout}{said.stderr}\n{log_of(name)}")
    elif condition != "service_started":
        fail(f"cannot play {condition}")


def copy(source, target):
    """`docker compose cp`; a file keeps its mode, and what is copied into a service is root's."""

    def path(word):
        name, colon, inner = word.partition(":")
        return f"/proc/{pid(name)}/root{inner}" if colon and pid(name) else word

    # The namespace of mounts is another, but the way by /proc leads into it.
    if os.path.isdir(path(target)):
        target = os.path.join(target, os.path.basename(source))
    shutil.copy(path(source), path(target))


# The network


def address(name):
    return 2 + list(compose()["services"]).index(name)


def ip(*words):
    subprocess.run(["ip", *words], check=True)


def network(name, service):
    if os.path.exists(f"/run/netns/{name}"):
        return
    # The first of this name.
    if not any(pathlib.Path("/run/netns").glob("*")):
        ip("link", "add", "compose", "type", "bridge")
        ip("address", "add", f"{NETWORK}.1/24", "dev", "compose")
        ip("link", "set", "compose", "up")
        ip("link", "set", "lo", "up")
    ip("netns", "add", name)
    near = f"to{address(name)}"
    ip("link", "add", near, "type", "veth", "peer", "name", "eth0", "netns", name)
    ip("link", "set", near, "master", "compose", "up")
    ip("-n", name, "address", "add", f"{NETWORK}.{address(name)}/24", "dev", "eth0")
    for device in ["lo", "eth0"]:
        ip("-n", name, "link", "set", device, "up")
    for port in service.get("ports", []):
        host, outer, inner = port.split(":")
        subprocess.Popen([sys.executable, "-c", FORWARD, host, outer, f"{NETWORK}.{address(name)}", inner])


FORWARD = """
import asyncio, sys
host, outer, to, inner = sys.argv[1:]
async def pipe(reader, writer):
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()
async def forward(reader, writer):
    try:
        others = await asyncio.open_connection(to, int(inner))
    except OSError:
        return writer.close()
    await asyncio.gather(pipe(reader, others[1]), pipe(others[0], writer), return_exceptions=True)
async def main():
    await (await asyncio.start_server(forward, host, int(outer))).serve_forever()
asyncio.run(main())
"""

# An engine has a umask of its own.
os.umask(0o022)
main(sys.argv[1:])
