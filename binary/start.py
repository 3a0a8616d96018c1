"""Entry point of the single file `dist/vlatool`, which contains this file as it is.

It is Python 2.7 and 3 at once: every interpreter can say that it is the wrong one. The single file
holds compiled packages, which fit one version of Python on one platform. The first start unpacks
them; processes that the command starts get the folder by `PYTHONPATH`.
"""

import json
import os
import signal
import sys
import zipfile
import zlib

ENVIRONMENT_PROBLEM = 6  # exit code


def main():
    """Checks the interpreter, unpacks the packages unless that is done, runs the command."""
    # Ctrl-C must not print a traceback while the packages are unpacked.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from _built import BUILT

    path = os.path.abspath(sys.argv[0])
    if interpreter() != (BUILT["suffix"], BUILT["machine"]):
        message, hint = wrong_python(BUILT, path)
        fail("environment.missing_dependency", message, hint)
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    root = os.path.join(cache, "vlatool", "binary")
    os.environ["SHIV_ROOT"] = root
    os.environ["VLATOOL_BINARY"] = path
    folder = os.path.join(root, "%s_%s" % (os.path.basename(path), BUILT["id"]))
    if sys.stderr.isatty() and not os.path.isdir(folder):
        sys.stderr.write("first start: unpacking to %s\n" % folder)
    from _bootstrap import bootstrap

    try:
        bootstrap()  # the command itself ends with SystemExit
    except (OSError, zipfile.BadZipfile, zlib.error) as error:
        message = "the packages of %s cannot be unpacked: %s" % (path, error)
        hint = (
            "set XDG_CACHE_HOME to a folder that is writable and has %d MB free, or copy %s again"
        )
        fail("environment.hardware", message, hint % (BUILT["megabytes"], path))


def interpreter():
    """Suffix of compiled modules, which is empty before Python 3, and the machine's architecture.

    The suffix names implementation, version and platform: `.cpython-311-x86_64-linux-gnu.so`.
    """
    if sys.version_info < (3, 3):
        return "", os.uname()[4]
    from importlib.machinery import EXTENSION_SUFFIXES

    return EXTENSION_SUFFIXES[0], os.uname()[4]


def wrong_python(built, path):
    """Message and hint for an interpreter that the file was not built for."""
    own = "Python %d.%d on %s" % (sys.version_info[0], sys.version_info[1], interpreter()[1])
    what = (path, built["name"], built["suffix"], own, sys.executable)
    message = "%s is for %s (%s); it was started by %s (%s)" % what
    hint = "run `%s %s`, or put that Python first on PATH; `make binary` builds a file for another"
    return message, hint % (built["command"], path)


def fail(code, message, hint):
    """Ends the process with an error, in the form that all commands have."""
    if "--json" in sys.argv:
        error = {"kind": "environment", "code": code, "message": message, "hint": hint}
        sys.stdout.write(json.dumps({"error": dict(error, details={})}, indent=2) + "\n")
    sys.stderr.write("error: %s\nhint: %s\n" % (message, hint))
    sys.exit(ENVIRONMENT_PROBLEM)
