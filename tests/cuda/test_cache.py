import errno
import itertools
import logging
import os
import stat
import subprocess
import sys
import textwrap
import time

import pytest

from gpu_conv.cuda import cache, compiler
from tests.cuda import tiny

KEY = cache.key("source", "option", "kernel<1>", "sm_80", "13.0")
ENTRY = ({"lowered": "_Z1k", "registers": 40}, b"\x7fELF\n\0cubin", b".version 8.8\n// ptx\n")

pytestmark = pytest.mark.skipif(os.name != "posix", reason="owners and modes are those of POSIX")


@pytest.fixture(autouse=True)
def forget_warnings():
    cache._refuse.cache_clear()


@pytest.fixture
def stored(own_cache):
    """The file that holds ENTRY under KEY."""
    cache.write(KEY, *ENTRY)
    return own_cache / KEY


def test_what_was_written_is_read(stored):
    assert cache.read(KEY) == ENTRY


def test_a_key_depends_on_every_part_and_on_their_borders():
    parts = ("source", "option", "kernel<1>", "sm_80", "13.0")
    others = {cache.key(*parts[:i], parts[i] + "x", *parts[i + 1 :]) for i in range(5)}
    others |= {cache.key("sourceoption", "", *parts[2:]), cache.key("", "sourceoption", *parts[2:]), cache.key(*parts)}
    assert len(others) == 8


def test_a_miss_makes_no_directory_and_a_write_makes_a_private_one(own_cache):
    assert cache.read(KEY) is None
    assert not own_cache.parent.exists()
    cache.write(KEY, *ENTRY)
    assert stat.S_IMODE(own_cache.stat().st_mode) == 0o700
    assert stat.S_IMODE((own_cache / KEY).stat().st_mode) == 0o600
    assert [path.name for path in own_cache.iterdir()] == [KEY]


def test_every_truncation_is_a_miss(stored):
    good = stored.read_bytes()
    for size in range(len(good)):
        stored.write_bytes(good[:size])
        assert cache.read(KEY) is None, size
    stored.write_bytes(good + b"\0")
    assert cache.read(KEY) is None
    stored.write_bytes(good)
    assert cache.read(KEY) == ENTRY


def test_every_changed_byte_is_a_miss(stored):
    good = stored.read_bytes()
    for place in range(len(good)):
        stored.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        assert cache.read(KEY) is None, place


def test_an_entry_under_another_key_or_of_another_format_is_a_miss(stored, own_cache, monkeypatch):
    other = cache.key("source", "option", "kernel<1>", "sm_80", "13.5")
    stored.rename(own_cache / other)
    assert cache.read(other) is None
    (own_cache / other).rename(stored)
    monkeypatch.setattr(cache, "_MAGIC", b"gpu_conv kernel 2\n")
    assert cache.read(KEY) is None


def test_a_bad_entry_is_replaced(stored):
    stored.write_bytes(b"")
    cache.write(KEY, *ENTRY)
    assert cache.read(KEY) == ENTRY


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o1777])
def test_a_directory_that_others_can_write_is_not_used(stored, own_cache, mode, caplog):
    own_cache.chmod(mode)
    assert cache.read(KEY) is None
    stored.unlink()
    cache.write(KEY, *ENTRY)
    assert not stored.exists()
    (message,) = caplog.messages  # said once, not at every kernel
    assert str(own_cache) in message
    assert "others may write" in message


def test_a_linked_directory_is_not_used(own_cache, tmp_path):
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    own_cache.parent.mkdir()
    own_cache.symlink_to(tmp_path / "elsewhere")
    cache.write(KEY, *ENTRY)
    assert cache.read(KEY) is None
    assert not list((tmp_path / "elsewhere").iterdir())


def test_an_entry_that_others_can_write_is_not_used(stored):
    for mode in (0o620, 0o602):
        stored.chmod(mode)
        assert cache.read(KEY) is None
    stored.chmod(0o644)
    assert cache.read(KEY) == ENTRY


def test_what_another_user_owns_is_not_used_unless_root_does(stored, monkeypatch):
    me = os.geteuid()
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: me + 1)
        assert cache.read(KEY) == (ENTRY if me == 0 else None)
    assert cache.read(KEY) == ENTRY


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root gives files away")
@pytest.mark.parametrize("given_away", ["directory", "entry"])
def test_root_does_not_use_what_a_user_owns(stored, own_cache, given_away):
    os.chown(own_cache if given_away == "directory" else stored, 12345, -1)
    assert cache.read(KEY) is None


def test_links_pipes_and_directories_in_place_of_an_entry_are_misses(stored, own_cache):
    stored.rename(own_cache / "moved")
    stored.symlink_to(own_cache / "moved")
    assert cache.read(KEY) is None
    stored.unlink()
    os.mkfifo(stored)
    assert cache.read(KEY) is None  # and does not wait for a writer
    stored.unlink()
    stored.mkdir()
    assert cache.read(KEY) is None
    cache.write(KEY, *ENTRY)


def test_a_file_in_place_of_the_directory_is_no_error(own_cache):
    own_cache.parent.mkdir()
    own_cache.touch()
    cache.write(KEY, *ENTRY)
    assert cache.read(KEY) is None


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("call", ["os.mkdir", "tempfile.mkstemp", "os.replace"])
def test_a_disk_that_refuses_is_no_error(own_cache, monkeypatch, call, code, caplog):
    def refuse(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(call, refuse)
        for _ in range(3):
            cache.write(KEY, *ENTRY)
    assert cache.read(KEY) is None
    assert not own_cache.exists() or not list(own_cache.iterdir())
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert f"{own_cache}: {os.strerror(code)}; kernels are compiled anew" in record.getMessage()


def test_a_file_that_may_not_grow_leaves_nothing_behind(own_cache):
    """A real short write: the limit on file sizes stands for a disk that is full half way through."""
    code = """
        import resource, signal
        from gpu_conv.cuda import cache
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
        cache.write("k", {}, bytes(50000), b"")
        assert cache.read("k") is None
        cache.write("small", {}, bytes(5000), b"")
        assert cache.read("small") == ({}, bytes(5000), b"")
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)
    assert [path.name for path in own_cache.iterdir()] == ["small"]


def test_killed_in_the_middle_of_a_write_is_a_miss_or_the_entry_before(own_cache, monkeypatch):
    """SIGKILL while the temporary file grows: nobody cleans up, and nobody reads half of it."""
    content = ({"n": 1}, bytes(16 << 20), b"")
    cache.write("k", *content)
    code = "from gpu_conv.cuda import cache\nwhile True: cache.write('k', {'n': 1}, bytes(16 << 20), b'')"
    for _ in range(20):
        writer = subprocess.Popen([sys.executable, "-c", code])
        try:
            deadline = time.monotonic() + 30
            while not any(0 < size(path) < 16 << 20 for path in own_cache.glob(".*.tmp")):
                assert writer.poll() is None and time.monotonic() < deadline
        finally:
            writer.kill()
            writer.wait()
        assert cache.read("k") == content
        if left := list(own_cache.glob(".*.tmp")):
            break
    assert left, "no kill fell into a write"
    for path in left:
        os.utime(path, (0, time.time() - 2 * cache._ABANDONED_SECONDS))
    monkeypatch.setattr(cache, "SWEEP_EVERY", 1)
    cache.write("next", *ENTRY)
    assert sorted(path.name for path in own_cache.iterdir()) == ["k", "next"]


def size(path):
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The folder of a user who set no other place for the cache."""
    monkeypatch.delenv("GPU_CONV_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")  # JAX's, where another test has imported it
def test_a_home_without_the_right_to_write_keeps_no_kernels(home):
    """As a user without any right to write there, which root has to become first."""
    home.mkdir(mode=0o500)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setuid(65534)
            cache.write(KEY, *ENTRY)
            status = 0 if cache.read(KEY) is None else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert not list(home.iterdir())
    home.chmod(0o700)


def test_kernels_are_compiled_where_the_home_is_no_folder(home):
    home.write_bytes(b"")
    assert compiler.compile(tiny.TEXT, "tiny<float, 3>", "compute_80").ptx
    assert cache.read(KEY) is None


def test_a_read_only_directory_still_serves_hits(stored, own_cache):
    own_cache.chmod(0o500)
    if os.access(own_cache, os.W_OK):
        pytest.skip("root may write anywhere")
    cache.write("other", *ENTRY)
    assert cache.read(KEY) == ENTRY
    assert cache.read("other") is None
    own_cache.chmod(0o700)


def test_the_least_recently_used_go_first(own_cache, monkeypatch):
    monkeypatch.setattr(cache, "SWEEP_EVERY", 1)
    size = 1000
    for age, name in enumerate("abcd"):
        cache.write(name, {}, bytes(size), b"")
        os.utime(own_cache / name, (0, 1000 + age))
    cache.read("a")  # now the newest
    entry = (own_cache / "a").stat().st_size
    monkeypatch.setattr(cache, "MAX_BYTES", 3 * entry)
    cache.write("e", {}, bytes(size), b"")
    assert sorted(path.name for path in own_cache.iterdir()) == ["a", "d", "e"]


def test_a_process_looks_through_the_folder_now_and_then(own_cache, monkeypatch):
    monkeypatch.setattr(cache, "MAX_BYTES", 0)
    monkeypatch.setattr(cache, "_writes", itertools.count())
    for i in range(cache.SWEEP_EVERY):
        cache.write(f"{i}", *ENTRY)
    assert len(list(own_cache.iterdir())) == cache.SWEEP_EVERY - 1
    cache.write("another", *ENTRY)
    assert not list(own_cache.iterdir())


def test_abandoned_temporary_files_go_and_fresh_ones_stay(own_cache, monkeypatch):
    monkeypatch.setattr(cache, "SWEEP_EVERY", 1)
    cache.write("a", *ENTRY)
    for name, age in ((".old.tmp", 2 * cache._ABANDONED_SECONDS), (".new.tmp", 10)):
        (own_cache / name).touch()
        os.utime(own_cache / name, (0, time.time() - age))
    cache.write("b", *ENTRY)
    assert sorted(path.name for path in own_cache.iterdir()) == [".new.tmp", "a", "b"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_thirty_two_processes_on_one_cache_while_one_destroys_files(own_cache):
    command = [sys.executable, "-m", "tests.cuda.hammer", "32", "4"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert result.returncode == 0, result.stdout + result.stderr
    assert not [path for path in own_cache.iterdir() if path.suffix == ".tmp"]
