"""The course for a room on one machine: a system account per learner, one command, a free port.

    sudo env PATH="$PATH" /opt/qtutor/bin/python -m jupyterhub -f binder/hub/jupyterhub_config.py

Every account of the group `learners` may log in, with its password. What it needs is in README.md beside this file.
"""

import os
import shutil
import socket
import sys
from pathlib import Path

import qtutor
from qtutor import threads
from qtutor.manifest import LESSONS

c = get_config()  # noqa: F821  JupyterHub defines it

jupyter = Path(qtutor.__file__).resolve().parent / "course" / "jupyter"
course = Path(__file__).resolve().parent.parent.parent
state = Path(os.environ.get("QTUTOR_HUB", "/srv/qtutor"))
state.mkdir(mode=0o755, parents=True, exist_ok=True)


def free_port(first: int) -> int:
    """The first port from `first` on that nobody listens on."""
    for port in range(first, 65536):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port
    raise SystemExit(f"every port from {first} on is taken")


proxy = shutil.which("configurable-http-proxy") or course / "node_modules/.bin/configurable-http-proxy"
if not Path(proxy).exists():
    raise SystemExit("configurable-http-proxy was not found: npm install -g configurable-http-proxy")
port = free_port(int(os.environ.get("QTUTOR_PORT", "8000")))
print(f"The course is at http://{socket.gethostname()}:{port}", file=sys.stderr)

c.JupyterHub.bind_url = f"http://:{port}"
c.JupyterHub.hub_port = free_port(port + 1)
c.ConfigurableHTTPProxy.command = [str(proxy)]
c.ConfigurableHTTPProxy.api_url = f"http://127.0.0.1:{free_port(c.JupyterHub.hub_port + 1)}"
c.ConfigurableHTTPProxy.pid_file = str(state / "proxy.pid")
c.JupyterHub.cookie_secret_file = str(state / "cookie_secret")
c.JupyterHub.db_url = f"sqlite:///{state / 'hub.sqlite'}"

c.LocalAuthenticator.allowed_groups = {"learners"}

# The copy is made by the learner's own account, in the learner's own home, and never replaces the learner's work.
c.LocalProcessSpawner.shell_cmd = [
    "sh",
    "-c",
    'umask 077; mkdir -p "$HOME/qtutor" "$HOME/.cache/qtutor" && cp -Rn "$QTUTOR_COURSE/lessons" "$HOME/qtutor/"; '
    'cp -Rn "$QTUTOR_PREPARED/." "$HOME/.cache/qtutor/" 2>/dev/null; cd "$HOME/qtutor" && eval "exec $1"',
    "sh",  # JupyterHub adds the command as one word, quoted for a shell
]
c.Spawner.cmd = [sys.executable, "-m", "jupyterhub.singleuser"]
c.Spawner.notebook_dir = "~/qtutor"
c.Spawner.default_url = f"/lab/tree/{LESSONS[0].notebook}"
c.Spawner.start_timeout = c.Spawner.http_timeout = 180  # a room starts all at once
c.Spawner.env_keep = ["LANG", "LC_ALL", "LD_LIBRARY_PATH", *threads.VARIABLES]
c.Spawner.environment = {
    "PATH": os.pathsep.join((str(Path(sys.executable).parent), "/usr/local/bin", "/usr/bin", "/bin")),
    "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
    "JUPYTER_PATH": os.pathsep.join((str(jupyter), str(Path(sys.prefix, "share", "jupyter")))),
    "JUPYTER_CONFIG_PATH": str(jupyter),
    "QTUTOR_COURSE": str(course),
    "QTUTOR_PREPARED": str(state / "cache"),  # QTUTOR_HOME=/srv/qtutor qtutor prepare
    "OMP_NUM_THREADS": "1",  # many learners share the cores: threads of one would only wait for those of another
}
