"""Make the environment at the given path ready for this checkout: `python tools/env.py .venv`.

Creates it when missing, installs zoofast and what developing it needs when that is not there yet, and leaves a
stamp, so that the next call returns at once. Uses the standard library only; the syntax is that of old Pythons,
so that one that is too old can say so."""
import hashlib, json, os, re, subprocess, sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
OLDEST = (3, 10)
STAMP = "zoofast-installed.json"

def fail(msg): sys.exit("error: " + msg)

def stamp(venv):
    "What an installation depends on: this checkout, this environment, pyproject.toml and the version"
    with open(os.path.join(ROOT, "pyproject.toml"), "rb") as f: sha = hashlib.sha256(f.read()).hexdigest()
    with open(os.path.join(ROOT, "zoofast", "__init__.py")) as f:
        ver = re.search("__version__ *= *[\"']([^\"']+)", f.read())
    python = "%d.%d" % sys.version_info[:2]
    return dict(checkout=ROOT, venv=venv, python=python, pyproject=sha, version=ver.group(1) if ver else "")

def read_stamp(venv):
    try:
        with open(os.path.join(venv, STAMP)) as f: return json.load(f)
    except (IOError, ValueError): return {}

def create(venv):
    "A fresh environment at `venv`"
    print("making the environment %s with Python %d.%d" % ((os.path.relpath(venv),) + sys.version_info[:2]))
    sys.stdout.flush()
    command = [sys.executable, "-m", "venv", "--clear", venv]
    res = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if res.returncode:
        print(res.stdout.decode(errors="replace"))
        fail("Python could not make the environment %s: is its venv module installed "
             "(Debian, Ubuntu: apt install python3-venv)?" % venv)

def unmet(project):
    "The first of the packages that zoofast and developing it need that the running environment does not have, or ''"
    from importlib import metadata
    try: from packaging.requirements import Requirement
    except ImportError: from pip._vendor.packaging.requirements import Requirement
    extras = project.get("optional-dependencies", {})
    todo = list(project["dependencies"]) + ["zoofast[dev]"]
    while todo:
        req = Requirement(todo.pop())
        if req.marker and not req.marker.evaluate({"extra": ""}): continue
        if req.name == "zoofast":
            for e in req.extras: todo += extras[e]
            continue
        try: found = metadata.version(req.name)
        except metadata.PackageNotFoundError: return str(req)
        if not req.specifier.contains(found, prereleases=True): return str(req)
    return ""

def missing():
    "The first thing that keeps the running environment from being a complete editable install of this checkout, or ''"
    from importlib import metadata
    from importlib.util import find_spec
    try: import tomllib
    except ImportError: from pip._vendor import tomli as tomllib
    try: dist = metadata.distribution("zoofast")
    except metadata.PackageNotFoundError: return "zoofast"
    spec = find_spec("zoofast")
    found = spec and os.path.realpath(os.path.dirname(spec.origin or ""))
    if found != os.path.realpath(os.path.join(ROOT, "zoofast")): return "zoofast of this checkout"
    if dist.version != stamp("")["version"]: return "zoofast " + stamp("")["version"]
    if not os.path.exists(os.path.join(sys.prefix, "bin", "zoofast")): return "the zoofast command"
    with open(os.path.join(ROOT, "pyproject.toml"), "rb") as f: project = tomllib.load(f)["project"]
    return unmet(project)

def install():
    pip = [sys.executable, "-m", "pip"]
    if subprocess.run(pip + ["--version"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode:
        subprocess.run([sys.executable, "-m", "ensurepip", "--upgrade"], stdout=subprocess.DEVNULL)
    print("installing (a few minutes the first time)")
    sys.stdout.flush()
    res = subprocess.run(pip + ["install", "-q", "--disable-pip-version-check", "--no-input", "-e", ".[dev]"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if res.returncode:
        print(res.stdout.decode(errors="replace"))
        fail("pip could not install zoofast; its own words are above")

def run(python, venv, *args):
    "Go on as `python`"
    sys.stdout.flush()
    os.execv(python, [python, os.path.abspath(__file__), venv] + list(args))

def main(venv, inside=""):
    if sys.version_info < OLDEST:
        fail("zoofast needs Python 3.10 or newer and %s is %d.%d: make PYTHON=/path/to/a/newer/python3"
             % ((sys.executable,) + sys.version_info[:2]))
    venv = os.path.abspath(venv)
    ours = venv == os.path.join(ROOT, ".venv")
    python = os.path.join(venv, "bin", "python")
    old = read_stamp(venv)
    if not inside and os.path.realpath(sys.prefix) != os.path.realpath(venv):
        if not os.access(python, os.X_OK):
            if os.path.isdir(venv) and os.listdir(venv) and not ours:
                fail("VENV=%s exists and is not a Python environment" % venv)
            create(venv)
        run(python, venv, "inside")
    if old.get("venv", venv) != venv:      # moved or copied: its commands still name the place it was made in
        if not ours: fail("the environment %s was moved or copied from %s: make a new one" % (venv, old["venv"]))
        base = os.path.realpath(sys.executable)
        if base.startswith(os.path.realpath(venv) + os.sep):
            fail("remove %s, which was moved or copied, and try again" % venv)
        os.remove(python)
        run(base, venv)
    if old == stamp(venv): return
    if missing(): install()
    with open(os.path.join(venv, STAMP), "w") as f: json.dump(stamp(venv), f, indent=1)

if __name__ == "__main__": main(*sys.argv[1:])
