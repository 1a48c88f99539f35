"""A real JupyterHub on this machine: eight accounts, one lesson, all at once."""

import contextlib
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from qtutor import manifest

import pytest
from lab import COURSE, free_port, served

LEARNERS = [f"qtlearner{i}" for i in range(8)]
LESSON = manifest.LESSONS[1].notebook
PROXY = shutil.which("configurable-http-proxy") or str(COURSE / "node_modules/.bin/configurable-http-proxy")

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="needs root, to make accounts"),
    pytest.mark.skipif(not Path(PROXY).exists(), reason="needs npm install configurable-http-proxy"),
]


def sh(*command, **options):
    return subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True, **options)


def copy(source, target, *options):
    """Copy as hard links where both are on one disk: the same bytes, at a place that others can reach."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if subprocess.run(["cp", "-al", *options, source, target], capture_output=True).returncode:
        shutil.rmtree(target, ignore_errors=True)
        sh("cp", "-a", *options, source, target)


@pytest.fixture(scope="module")
def machine():
    """A folder that every account can read, with the course and an environment like this one."""
    folder = Path(tempfile.mkdtemp(prefix="qtutor-hub-", dir="/var/tmp"))
    folder.chmod(0o755)
    try:
        copy(Path(sys.base_prefix), folder / "python")
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        sh(folder / "python" / "bin" / version, "-m", "venv", "--without-pip", folder / "env")
        shutil.rmtree(folder / "env" / "lib" / version / "site-packages")
        copy(Path(sys.prefix, "lib", version, "site-packages"), folder / "env" / "lib" / version / "site-packages")
        copy(Path(sys.prefix, "share"), folder / "env" / "share")
        for name in ("lessons", "qtutor", "binder"):
            shutil.copytree(COURSE / name, folder / "course" / name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
        prepare = f"from qtutor.samples import prepare; prepare({manifest.LESSONS[1].models})"
        environment = {**os.environ, "PYTHONPATH": str(folder / "course"), "QTUTOR_HOME": str(folder / "state")}
        sh(folder / "env/bin/python", "-c", prepare, env=environment, cwd=folder)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def passwords(machine):
    """System accounts, with homes that nobody else can enter; removed afterwards with all that they run."""
    import psutil

    made = {name: secrets.token_urlsafe(12) for name in LEARNERS}
    subprocess.run(["groupadd", "--force", "learners"], check=True)
    (machine / "homes").mkdir()
    try:
        for name in made:
            sh("useradd", "--create-home", "--base-dir", machine / "homes", "--key", "HOME_MODE=0700",
               "--shell", "/bin/sh", "--gid", "learners", name)  # fmt: skip
        sh("chpasswd", input="".join(f"{name}:{password}\n" for name, password in made.items()))
        yield made
    finally:
        for process in psutil.process_iter(["username"]):
            if process.info["username"] in made:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        time.sleep(1)
        for name in made:
            subprocess.run(["userdel", "--remove", name], capture_output=True)
        subprocess.run(["groupdel", "learners"], capture_output=True)


@pytest.fixture(scope="module")
def hub(machine, passwords):
    port = free_port()
    environment = {
        "PATH": f"{Path(PROXY).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(machine / "course"),
        "QTUTOR_HUB": str(machine / "state"),
        "QTUTOR_PORT": str(port),
        "HOME": str(machine),
        "LD_LIBRARY_PATH": str(machine / "python" / "lib"),  # of a Python that was copied
    }
    command = [machine / "env/bin/python", "-m", "jupyterhub", "-f", machine / "course/binder/hub/jupyterhub_config.py"]
    address = f"http://127.0.0.1:{port}"
    with served(command, f"{address}/hub/health", 90, env=environment, cwd=machine / "state") as log:
        yield address
        print(log.read_text()[-6000:])


class Learner:
    """One learner's browser: logged in, with a server of its own."""

    def __init__(self, address, name, password):
        import requests

        self.address, self.name, session = address, name, requests.Session()
        session.get(f"{address}/hub/login", timeout=60)
        form = {"username": name, "password": password, "_xsrf": session.cookies.get("_xsrf", path="/hub/")}
        answer = session.post(f"{address}/hub/login", data=form, timeout=60, allow_redirects=False)
        assert answer.status_code == 302, f"{name} cannot log in: {answer.status_code}"
        xsrf = {"X-XSRFToken": session.cookies.get("_xsrf", path="/hub/"), "Referer": f"{address}/hub/home"}
        answer = session.post(f"{address}/hub/api/users/{name}/tokens", headers=xsrf, timeout=60)
        answer.raise_for_status()
        self.headers = {"Authorization": f"token {answer.json()['token']}"}

    def call(self, method, path, **options):
        import requests

        return requests.request(method, f"{self.address}{path}", headers=self.headers, timeout=200, **options)

    def start(self):
        assert self.call("POST", f"/hub/api/users/{self.name}/server").status_code in (201, 202)
        deadline = time.monotonic() + 240
        while not self.call("GET", f"/hub/api/users/{self.name}").json()["servers"].get("", {}).get("ready"):
            assert time.monotonic() < deadline, f"{self.name}'s server did not start"
            time.sleep(1)

    def open(self, path):
        answer = self.call("GET", f"/user/{self.name}/api/contents/{path}")
        answer.raise_for_status()
        return [cell["source"] for cell in answer.json()["content"]["cells"] if cell["cell_type"] == "code"]

    def run(self, cells):
        """Run cells in a kernel of the learner's; return what they printed, and fail where one fails."""
        import websocket

        kernel = self.call("POST", f"/user/{self.name}/api/kernels", json={"name": "python3"}).json()["id"]
        url = f"{self.address.replace('http', 'ws')}/user/{self.name}/api/kernels/{kernel}/channels"
        channel = websocket.create_connection(url, header=self.headers, timeout=600)
        printed = []
        for source in cells:
            number = uuid.uuid4().hex
            content = {"code": source, "silent": False, "store_history": True, "allow_stdin": False}
            header = {
                "msg_id": number,
                "msg_type": "execute_request",
                "username": "",
                "session": number,
                "version": "5.3",
            }
            message = {"header": header, "parent_header": {}, "metadata": {}, "content": content, "channel": "shell"}
            channel.send(json.dumps(message))
            while True:
                answer = channel.recv()
                if not isinstance(answer, str):
                    continue  # what widgets send as bytes
                answer = json.loads(answer)
                if answer["parent_header"].get("msg_id") != number:
                    continue
                if answer["msg_type"] == "stream":
                    printed.append(answer["content"]["text"])
                if answer["msg_type"] == "execute_reply":
                    assert answer["content"]["status"] == "ok", (self.name, source, answer["content"])
                    break
        channel.close()
        return "".join(printed)


@pytest.fixture(scope="module")
def learners(hub, passwords):
    with ThreadPoolExecutor(len(passwords)) as room:
        joined = list(room.map(lambda item: Learner(hub, *item), passwords.items()))
        list(room.map(Learner.start, joined))
    return joined


@contextlib.contextmanager
def peak_memory():
    """Sample what each learner's processes hold, shared pages shared out; yields the peaks by account."""
    import psutil

    peaks, done = dict.fromkeys(LEARNERS, 0), threading.Event()

    def watch():
        while not done.wait(0.7):
            held = dict.fromkeys(LEARNERS, 0)
            for process in psutil.process_iter(["username"]):
                if process.info["username"] in held:
                    with contextlib.suppress(psutil.Error):
                        held[process.info["username"]] += process.memory_full_info().pss
            for name, size in held.items():
                peaks[name] = max(peaks[name], size)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peaks
    finally:
        done.set()
        watcher.join()


def test_eight_learners_run_a_lesson_at_once(learners):
    started = time.monotonic()
    with peak_memory() as peaks, ThreadPoolExecutor(len(learners)) as room:
        list(room.map(lambda learner: learner.run(learner.open(LESSON)), learners))
    minutes = (time.monotonic() - started) / 60
    print(f"\n{len(learners)} learners ran {LESSON} at once in {minutes:.1f} minutes on {os.cpu_count()} cores.")
    print("Peak memory per learner, GB:", " ".join(f"{size / 1e9:.2f}" for size in sorted(peaks.values())))
    assert 0 < max(peaks.values()) < 1.2e9


def test_the_threads_of_a_learner_wait_calmly(learners):
    inherited = "print(open('/proc/self/environ').read().split(chr(0)))"
    assert "'GOMP_SPINCOUNT=1000'" in learners[0].run([inherited])


def test_no_learner_reads_anothers_work(learners):
    ana, bo = learners[:2]
    assert ana.call("GET", f"/user/{ana.name}/api/contents/{LESSON}").ok
    assert ana.call("GET", f"/user/{bo.name}/api/contents/{LESSON}").status_code == 403
    code = """
import os
from pathlib import Path
homes = Path.home().parent
for home in homes.iterdir():
    try:
        print(home.name, len(os.listdir(home)) > 0)
    except PermissionError:
        print(home.name, "closed")
"""
    said = dict(line.split() for line in ana.run([code]).splitlines())
    assert said == {learner.name: "True" if learner is ana else "closed" for learner in learners}


def test_a_wrong_password_does_not_get_in(hub, passwords):
    with pytest.raises(AssertionError, match="cannot log in"):
        Learner(hub, LEARNERS[0], "wrong")


def test_a_learners_work_outlives_the_server(learners):
    ana = learners[0]
    note = {"type": "file", "format": "text", "content": "mine"}
    assert ana.call("PUT", f"/user/{ana.name}/api/contents/note.txt", json=note).ok
    assert ana.call("DELETE", f"/hub/api/users/{ana.name}/server").status_code in (202, 204)
    time.sleep(3)
    ana.start()
    assert ana.call("GET", f"/user/{ana.name}/api/contents/note.txt").json()["content"] == "mine"
