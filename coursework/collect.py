"""Finds what students handed in: folders, files, archives, and the names
that learning platforms give them.

`collect(path)` takes a folder or a zip, tar, tar.gz, tar.bz2 or tar.xz
of the whole class and returns one `Submission` a student, sorted by student.
Nothing is unpacked to disk, and no name that a student chose is ever used as
a path to write to. A student whose file can't be read gets a row with the
reason, and never stops the others. The rules:

**Who.** A student is a folder, or a single file: `ada/a1.ipynb` and
`ada.ipynb` both belong to `ada`. Names are compared after Unicode
normalisation (NFC), so `Ada` and `ada` are two students, and `René` typed in
two ways is one. Control characters, backslashes and bytes that are no text
are shown escaped (`\\n`). An archive with one folder around everything is
taken as that folder if the folder has the archive's name, if platform names
lie in it, or if it holds two folders or more and no notebook of its own.
In a folder on disk only platform names count for that.

**Platforms.**

| Platform | Name in its download | Student |
|---|---|---|
| Canvas | `lovelaceada_LATE_1234_5678_a1-2.ipynb` | `lovelaceada_1234` |
| Moodle | `Ada Lovelace_1234_assignsubmission_file_/a1.ipynb` | \
`Ada Lovelace_1234` |
| Moodle, flat | `Ada Lovelace_1234_assignsubmission_file_a1.ipynb` | \
the same |
| Brightspace | `1234-5678 - Ada Lovelace - 5 March, 2026 1234 PM - a1.ipynb` \
| `Ada Lovelace_1234` |
| Blackboard | `A1_alovelace_attempt_2026-03-05-12-34-56_a1.ipynb` | \
`alovelace` |
| Gradescope | `submission_1234/a1.ipynb` | `submission_1234`, or \
`Ada Lovelace_SID` from `submission_metadata.yml` |

The name is read from the left, so a file's own name can't pose as another
student's. Online texts are no notebooks. Loose files that a teacher keeps
beside submissions (csv, tsv, xls, xlsx, ods, yml, md, rst, log, index.html)
are passed over; any other loose file is somebody's submission.

**Late.** The platform's own mark, which only Canvas gives (`_LATE_`).

**Which file.** A file counts if its name fits `pattern`, in upper or lower
case. Of several, these decide in this order: the newest attempt by the
platform's stamp (Blackboard, Brightspace, Gradescope); a notebook before an
archive; the name of the assignment, exactly, then within a longer name; the
platform's larger number (Canvas); the one nearest the top. What was left out
is named in a note, and so is a newer attempt without any notebook. If two
are still equal the student is refused, with both named. Modification times
never count: copying and unpacking change them.
Hidden files, `.ipynb_checkpoints`, `__MACOSX`, `.DS_Store`, `Thumbs.db` and
`desktop.ini` are ignored.

**Archives of a student.** Looked into when there is no notebook beside
them, one level deep: zip (stored or deflated), tar, tar.gz, tgz, tar.bz2,
tar.xz, and one notebook packed by gzip, bzip2 or xz. Refused: an absolute
path, `..`, a link, a device, a FIFO, a sparse file, an encrypted member,
an archive in the archive, more than 1,000 members, more than 200 MB when
unpacked, more than 10 MB that are also more than 200 times the archive's
size, a damaged archive, 7z and rar. Sizes are counted while unpacking; a zip
gives no more than its table says, and only the notebook of it is unpacked.

**Limits.** A file of more than 100 MB is refused, a name of more than 255
characters, a path of more than 1,024; links, FIFOs, devices and sockets are
never opened or followed, and refuse the student who handed one in, as does
any other bad member of the archive of a class. A student has at most 10,000
files and folders on disk, and 200 MB in the archive of a class, which has
at most 100,000 members. (1 MB is 1,000,000 bytes.)
"""

import bz2
import fnmatch
import hashlib
import io
import itertools
import lzma
import os
import re
import stat
import tarfile
import unicodedata
import weakref
import zipfile
import zlib
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

MB = 10**6
FILE = 100 * MB           # one file
UNPACKED = 200 * MB       # all of one student's files
MEMBERS = 1_000           # of a student's archive
CLASS = 100_000           # members of the archive of a class
ON_DISK = 10_000          # files and folders of one student on disk
RATIO, FREE = 200, 10 * MB  # unpacked to packed; below FREE it may be more
NAME, PATH = 255, 1_024   # characters
ENTRY = 512               # bytes of a zip's table for one member, generously
HEADER = 1 << 18          # bytes of one header in a tar
HEADERS = 4_096           # bytes of headers for one member, on average
MEMORY = 1 << 27          # bytes that unpacking xz may take, twice `xz -9`
KEPT = 256 * MB           # packed bytes held of a class's compressed tar
CHUNK = 1 << 16
JOINED = 10_000           # compressed parts of one file, one after another

ALLOWED = "a folder, or a zip, tar, tar.gz, tar.bz2 or tar.xz of one"
_ARCHIVE = re.compile(
    r"\.(zip|tar|tgz|tbz2?|txz|tar\.(gz|bz2|xz)|7z|rar)$", re.I)
_PACKED = re.compile(r"\.(gz|bz2|xz)$", re.I)
_MAGIC = {"gz": b"\x1f\x8b", "bz2": b"BZh", "xz": b"\xfd7zXZ\0"}
_JUNK = {"__macosx", "thumbs.db", "desktop.ini"}
# Embedding and overriding directions: they make a name look like another.
_TURNING = set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


class Refused(ValueError):  # noqa: N818 - a verdict, not a fault
    """A student's file can't be graded; `reason` says why, for people."""

    def __init__(self, reason):
        super().__init__(reason)
        self.reason = reason


@dataclass
class Submission:
    """What one student handed in.

    `student` is in NFC; `file` is the path inside what was collected, for
    people only; `reason` is empty unless the file is refused.
    """

    student: str
    file: str = ""
    late: bool = False
    notes: list = field(default_factory=list)
    reason: str = ""
    _blob: object = field(default=None, repr=False, compare=False)

    def read(self):
        """Return the file's bytes, read now; raises Refused."""
        if self.reason:
            raise Refused(self.reason)
        with _named(_cut(self.file, 200)):
            return self._blob.data()


def collect(path, pattern="*.ipynb", name=None):
    """Return one Submission a student, sorted by student.

    `path` is a folder, or an archive of one; `pattern` says which files
    count, as in a shell; `name` is the assignment's, to choose among
    several. Raises ValueError if `path` is none of these, is damaged, or
    holds no submissions.
    """
    if not (isinstance(pattern, str) and pattern):
        raise ValueError(f"pattern: came {pattern!r}; allowed is a text that "
                         "is not empty")
    if name is not None and not (isinstance(name, str) and name):
        raise ValueError(f"name: came {name!r}; allowed is a text that is "
                         "not empty, or None")
    wish = _Wish(pattern, name)
    source = _whole(path, wish)
    try:
        entries = list(source.entries())
    except Refused as refusal:
        raise ValueError(f"path: {path} {refusal.reason}; "
                         f"allowed is {ALLOWED}") from refusal
    depth, stem = 0, _stem(Path(path).name)
    if _wrapped(entries, wish, stem, isinstance(source, _Disk)):
        depth = 1
    limit = None if isinstance(source, _Disk) else UNPACKED
    rows = [_row(student, handed, wish, limit)
            for student, handed in _groups(entries, depth).items()]
    if not rows:
        raise ValueError(f"path: {path} holds no submissions; allowed is "
                         f"{ALLOWED}, with a folder or a file a student")
    return sorted(rows, key=lambda row: row.student)


def slug(student):
    """Return a file name for a student that is safe on every system.

    At most 80 of A-Z a-z 0-9 - _ . and then 8 hex digits of the SHA-256 of
    the whole name, which keep apart names that look alike in ASCII or on
    disks that ignore case.
    """
    if not isinstance(student, str):
        raise TypeError(f"student: came {student!r}; allowed is a str")
    whole = unicodedata.normalize("NFC", student)
    digest = hashlib.sha256(whole.encode("utf-8", "surrogatepass"))
    plain = unicodedata.normalize("NFKD", whole)
    plain = plain.encode("ascii", "ignore").decode()
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", plain).strip("-._")
    # Windows takes these for devices, whatever follows a dot.
    if re.fullmatch(r"con|prn|aux|nul|(com|lpt)\d", plain.split(".")[0], re.I):
        plain = f"_{plain}"
    return f"{plain[:80].rstrip('.') or 'student'}-{digest.hexdigest()[:8]}"


# What names mean


@dataclass(frozen=True)
class _Owner:
    student: str
    late: bool = False
    attempt: tuple | None = None  # of int, sorts by age; None if unknown
    number: int = 0           # Canvas's number of the file
    file: str = ""            # a loose file's name as the student gave it
    text: bool = False        # typed into the platform: never a notebook
    head: str = ""            # Blackboard's "assignment_user"
    note: str = ""


# add_upload_submission, get_filename and sanitize_user_name in
# https://github.com/instructure/canvas-lms/blob/master/lib/content_zipper.rb
_CANVAS = re.compile(
    r"(?P<who>[^\s.()\-]*?)(?P<late>_LATE)?_(?P<id>\d+)_"
    r"((?P<number>\d+)_(?P<file>.+)|(text|link)\.html)", re.S)
_CANVAS_ANONYMOUS = re.compile(
    r"(?P<late>LATE_)?(?P<who>anon)_(?P<id>[A-Za-z0-9]+)_"
    r"((?P<number>\d+)_(?P<file>.+)|(text|link)\.html)", re.S)
# load_submissionplugin_filelist in https://github.com/moodle/moodle/blob/main/
# public/mod/assign/classes/downloader.php; older versions end in "file_".
_MOODLE = re.compile(
    r"(?P<who>.+?)(_(?P<id>\d+))?_assignsubmission_(?P<type>[a-z]+)"
    r"(_(?P<file>.*))?", re.S)
# No page of D2L's says it; tools that teachers publish agree on this form.
_BRIGHTSPACE = re.compile(
    r"(?P<id>\d+)-\d+ - (?P<who>.+?) - (?P<date>"
    r"(\d{1,2} [^\W\d]+\.?|[^\W\d]+\.? \d{1,2}),? \d{4},? "
    r"\d{1,2}[: ]?\d{2}( ?[AaPp]\.?[Mm]\.?)?)( - (?P<file>.+))?", re.S)
# https://nbgrader.readthedocs.io/en/stable/user_guide/
# managing_assignment_files_manually.html; the .txt is the platform's receipt.
_BLACKBOARD = re.compile(
    r"(?P<head>.+?)_attempt_(?P<stamp>\d{4}(-\d\d){5})(_(?P<file>.+)|\.txt)",
    re.S)
_GRADESCOPE = re.compile(r"submission_(?P<id>\d{1,20})")
_METADATA = re.compile(r"submission_metadata\.ya?ml")
_TEACHERS = re.compile(
    r"index\.html?|.+\.(csv|tsv|xlsx?|ods|ya?ml|md|rst|log)", re.I)
_MONTHS = "jan feb mar apr may jun jul aug sep oct nov dec".split()


def _owner(name, folder, roster):
    """Whose a top-level name is, or None if it is no submission."""
    owner = _on_platform(name, folder, roster)
    if owner is None and not folder and not _TEACHERS.fullmatch(name):
        owner = _Owner(_stem(name), file=name)
    if owner is None and folder:
        owner = _Owner(name)
    return owner


def _on_platform(name, folder, roster=()):
    """Whose a name is that a platform gave, or None."""
    if len(name) > NAME:
        return None
    if name in roster:
        return roster[name]
    if folder and (match := _GRADESCOPE.fullmatch(name)):
        return _Owner(name, attempt=(int(match["id"]),))
    if match := _MOODLE.fullmatch(name):
        if folder == (not match["file"]):
            student = "_".join(filter(None, (match["who"], match["id"])))
            return _Owner(student, file=match["file"] or "",
                          text=match["type"] == "onlinetext")
    if match := _BRIGHTSPACE.fullmatch(name):
        if folder == (not match["file"]):
            return _Owner(f"{match['who']}_{match['id']}",
                          attempt=_stamp(match["date"]),
                          file=match["file"] or "")
    return None if folder else _loose(name)


def _loose(name):
    """Whose a file is that Blackboard or Canvas named, or None."""
    if match := _BLACKBOARD.fullmatch(name):
        return _Owner(match["head"].rpartition("_")[2], head=match["head"],
                      attempt=tuple(map(int, match["stamp"].split("-"))),
                      file=match["file"] or name, text=not match["file"])
    match = _CANVAS_ANONYMOUS.fullmatch(name) or _CANVAS.fullmatch(name)
    # Canvas writes names in lower case: others only look like its own.
    if not match or any(letter.isupper() for letter in match["who"]):
        return None
    return _Owner(f"{match['who']}_{match['id']}", late=bool(match["late"]),
                  number=int(match["number"] or 0),
                  file=match["file"] or name, text=not match["file"])


def _stamp(date):
    """Return (year, month, day, minute of the day), None if unreadable."""
    month = re.search(r"[^\W\d]+", date)[0][:3].lower()
    day, year, *clock = map(int, re.findall(r"\d+", date))
    if month not in _MONTHS:
        return None
    hour, minute = clock if len(clock) > 1 else divmod(clock[0], 100)
    half = re.search(r"([ap])\.?m\.?$", date.lower())
    if half:
        hour = hour % 12 + (12 if half[1] == "p" else 0)
    return year, _MONTHS.index(month), day, 60 * hour + minute


def _roster(data):
    """Return {folder: _Owner} of Gradescope's submission_metadata.yml.

    Only `:name:`, `:sid:` and `:email:` below `:submitters:` are read, at
    the depth where Gradescope puts them: what students printed lies deeper.
    """
    roster, folder, people, inside = {}, None, [], False
    # Lines end at line feeds only: other ends may stand in what was printed.
    for line in itertools.chain(io.BytesIO(data), [b"end:"]):
        line = line.decode("utf-8", "replace").rstrip("\r\n")
        if match := re.fullmatch(r"([^\s#-][^:]*):\s*", line):
            if folder and people:
                roster[folder] = _submitters(folder, people)
            folder, people, inside = match[1].strip("'\""), [], False
        elif match := re.fullmatch(r"  (:\w+:).*", line):
            inside = match[1] == ":submitters:"
        elif match := inside and re.fullmatch(
                r"(  - |    ):(name|sid|email): *(.*?) *", line):
            if match[1] == "  - " or not people:
                people.append({})
            people[-1][match[2]] = match[3].strip("'\"")
    return roster


def _submitters(folder, people):
    names = []
    for one in people:
        mark = one.get("sid") or one.get("email") or folder
        names.append("_".join(filter(None, (one.get("name"), mark))))
    number = _GRADESCOPE.fullmatch(folder)
    note = f"handed in together with {', '.join(map(_shown, names[1:]))}"
    return _Owner(names[0], attempt=(int(number["id"]),) if number else None,
                  note=note if names[1:] else "")


def _stem(name):
    """A file's name without what says its kind: ada for ada.tar.gz."""
    short = _ARCHIVE.sub("", name)
    if short == name:
        short = os.path.splitext(_PACKED.sub("", name))[0]
    return short[:-6] if short.lower().endswith(".ipynb") else short


def _shown(text):
    """Text for people, in NFC: nothing in it moves a cursor, ends a line
    or turns the direction, and no two texts come out alike."""
    text = unicodedata.normalize("NFC", text)
    return "".join(map(_escaped, text))


def _escaped(letter):
    if letter == "\\":
        return "\\\\"
    if "\udc80" <= letter <= "\udcff":  # a byte that is no text
        return f"\\x{ord(letter) - 0xdc00:02x}"
    strange = unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp")
    if strange or letter in _TURNING:
        return letter.encode("unicode_escape").decode()
    return letter


def _path(parts, length=PATH):
    return _cut(_shown("/".join(parts)), length)


def _brief(parts):
    return _path(parts, 200)


def _cut(text, length):
    """Text of a bearable length; what is cut off still tells it apart."""
    if len(text) <= length:
        return text
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"{text[:length - 10]}… {digest}"


def _listed(names):
    shown = ", ".join(names[:5])
    return shown + (f" and {len(names) - 5} more" if names[5:] else "")


# Which files are whose, and which one counts


@dataclass(frozen=True)
class _Wish:
    pattern: str
    name: str | None

    def notebook(self, file):
        return fnmatch.fnmatchcase(_folded(file), _folded(self.pattern))

    def archive(self, file):
        """Whether a file is an archive by its name, or one packed
        notebook."""
        return bool(_ARCHIVE.search(file)
                    or _PACKED.search(file)
                    and self.notebook(_PACKED.sub("", file)))

    def wanted(self, parts):
        return (self.notebook(parts[-1]) or self.archive(parts[-1])
                or bool(_METADATA.fullmatch(parts[-1])))

    def fit(self, file, counted):
        """2 if a file has the assignment's name, 1 if it holds it, else 0.
        `counted` says that the platform may have added `-2`."""
        if self.name is None:
            return 0
        name, stem = _folded(_stem(self.name)), _folded(_stem(file))
        if name in (stem, re.sub(r"-\d+$", "", stem) if counted else stem):
            return 2
        name, stem = (re.sub(r"[\W_]+", "-", f"-{one}-")
                      for one in (name, stem))
        return int(name in stem)


def _folded(text):
    return unicodedata.normalize("NFC", text).casefold()


@dataclass(frozen=True)
class _Handed:
    """An entry with its owner; `inside` is its path within what the student
    handed in."""

    entry: object
    owner: _Owner
    inside: tuple

    @property
    def file(self):
        return self.inside[-1]


def _wrapped(entries, wish, stem, on_disk):
    """Whether one folder lies around all submissions."""
    tops = {entry.parts[0] for entry in entries
            if len(entry.parts) > 1 or entry.kind == "folder"
            or not (_TEACHERS.fullmatch(entry.parts[0]) or _slips(entry))}
    if len(tops) != 1 or _on_platform(*tops, True):
        return False
    below = [entry for entry in entries if len(entry.parts) > 1]
    folders = {entry.parts[1] for entry in below
               if len(entry.parts) > 2 or entry.kind == "folder"}
    files = {entry.parts[1] for entry in below} - folders
    if any(_on_platform(name, True) for name in folders) or any(
            _on_platform(name, False) for name in files):
        return True
    if on_disk or not below:
        return False
    loose = any(wish.notebook(name) or wish.archive(name) for name in files)
    return _folded(*tops) == _folded(stem) or len(folders) > 1 and not loose


def _slips(entry):
    """Whether a path is so wrong that it stands in no folder at all."""
    return bool(entry.bad and "/" in entry.parts[0])


def _groups(entries, depth):
    """Return {student: [_Handed]}; `depth` folders lie around them all."""
    slips = [entry for entry in entries if _slips(entry)]
    entries = [entry for entry in entries if len(entry.parts) > depth]
    roster, note = _read_roster(entries, depth)
    # A folder is one even where an archive doesn't list it.
    folders = {entry.parts[depth] for entry in entries
               if len(entry.parts) > depth + 1 or entry.kind == "folder"}
    owners, heads = {}, defaultdict(set)
    for top in dict.fromkeys(entry.parts[depth] for entry in entries):
        owner = owners[top] = _owner(top, top in folders, roster)
        if owner and owner.head:
            heads[owner.student].add(owner.head)
    groups = defaultdict(list)
    for entry in slips:
        groups[_path(entry.parts, NAME)].append(
            _Handed(entry, _Owner(entry.parts[0]), entry.parts))
    for entry in _last(entries):
        top = entry.parts[depth]
        owner = owners[top]
        if owner is None or _slips(entry):
            continue
        # Users x_smith and y_smith must not become one smith.
        many = owner.head and len(heads[owner.student]) > 1
        student = _shown(owner.head if many else owner.student)
        inside = entry.parts[depth + 1:] or (owner.file or top,)
        if note and top in folders and _GRADESCOPE.fullmatch(top):
            owner = _Owner(top, attempt=owner.attempt, note=note)
        groups[_cut(student, NAME)].append(_Handed(entry, owner, inside))
    return groups


def _last(entries):
    """Entries of which no two have one path: unpacking leaves the last. A
    bad one stays, whatever comes after it."""
    last = {(entry.parts, entry.bad): entry for entry in entries}
    return last.values()


def _read_roster(entries, depth):
    """Return Gradescope's roster, and a note if it can't be read."""
    for entry in entries:
        name = entry.parts[depth]
        if (len(entry.parts) == depth + 1 and entry.kind == "file"
                and not entry.bad and _METADATA.fullmatch(name)):
            try:
                return _roster(entry.blob.data()), ""
            except Refused as refusal:
                return {}, f"{name} {refusal.reason}: no names of students"
    return {}, ""


def _row(student, handed, wish, limit):
    """The row of one student; `limit` bytes at most, if any."""
    row = Submission(student, _path(handed[0].entry.parts),
                     any(one.owner.late for one in handed))
    row.notes += list(dict.fromkeys(
        _shown(one.owner.note) for one in handed if one.owner.note))
    try:
        for one in handed:
            if one.entry.bad:
                row.file = _path(one.entry.parts)
                raise Refused(f"{_brief(one.entry.parts)} {one.entry.bad}")
        size = sum(one.entry.size for one in handed)
        if limit and size > limit:
            raise Refused(f"{_cut(row.file, 200)} and what lies beside it "
                          f"have {size:,} bytes; at most {limit // MB} MB "
                          "are allowed")
        row._blob = _chosen(handed, wish, row)
    except Refused as refusal:
        row.reason = refusal.reason
    return row


def _chosen(handed, wish, row):
    """Return the blob that counts; its path, lateness and what was left
    out go into the row."""
    one = _best(handed, wish, row.notes)
    row.file, row.late = _path(one.entry.parts), one.owner.late
    path = _brief(one.entry.parts)
    with _named(path):
        one.entry.blob.check()
    if wish.notebook(one.file):
        return one.entry.blob
    with _named(path):
        archive = _archive(one.entry.blob, one.file, MEMBERS)
        inner = [_Handed(entry, _Owner(one.owner.student), entry.parts)
                 for entry in _sound(archive, wish)]
    with _named(path, "within {}: "):
        member = _best(inner, wish, row.notes)
    row.file = _path((*one.entry.parts, *member.entry.parts))
    with _named(_cut(row.file, 200)):
        member.entry.blob.check()
    return member.entry.blob


def _sound(archive, wish):
    """The entries of a student's archive, if nothing in it is amiss."""
    entries = list(archive.entries())
    for entry in entries:
        shown = _brief(entry.parts)
        if entry.bad:
            raise Refused(f"holds {shown}, which {entry.bad}")
        if entry.kind == "file" and wish.archive(entry.parts[-1]):
            raise Refused(f"holds the archive {shown}; allowed is an archive "
                          "with the notebook in it, and no archive")
    return list(_last(entries))


def _best(handed, wish, notes):
    """The one file that counts; the module's docstring says by what."""
    files = [one for one in handed if one.entry.kind == "file"]
    fit = [one for one in files if not one.owner.text
           and (wish.notebook(one.file) or wish.archive(one.file))]
    if not fit:
        raise Refused(_nothing(handed, files, wish))
    dated = all(one.owner.attempt is not None for one in fit)

    def merit(one):
        return (one.owner.attempt if dated else (), wish.notebook(one.file),
                wish.fit(one.file, one.owner.number), one.owner.number,
                -len(one.inside))

    top = max(map(merit, fit))
    best = [one for one in fit if merit(one) == top]
    names = [_brief(one.entry.parts) for one in best]
    if len(best) > 1:
        called = wish.name or "the assignment"
        raise Refused(f"several files and no way to choose: {_listed(names)}; "
                      f"allowed is one, or one that is named as {called} is")
    rest = [_brief(one.entry.parts) for one in fit if one is not best[0]]
    if rest:
        notes.append(f"of several files {names[0]} was taken; left out: "
                     f"{_listed(rest)}")
    newer = [_brief(one.entry.parts) for one in files if dated
             and (one.owner.attempt or ()) > best[0].owner.attempt]
    if newer:
        notes.append(f"a newer attempt has no notebook: {_listed(newer)}")
    return best[0]


def _nothing(handed, files, wish):
    """Why there is nothing to grade: what was found instead."""
    found = ["a text typed into the platform" if one.owner.text
             else _brief(one.inside) for one in files]
    found += [f"the folder {_brief(one.inside)}" for one in handed
              if one.entry.kind == "folder" and wish.notebook(one.file)]
    found = list(dict.fromkeys(found))
    return (f"no notebook ({_shown(wish.pattern)}); found: "
            f"{_listed(found) or 'nothing'}")


# Where bytes come from: every source yields entries, every entry has a blob


@dataclass(frozen=True)
class _Entry:
    """A file or folder: `parts` from the root down, as stored; `bad` says
    what is wrong with it, as the end of a sentence."""

    parts: tuple
    kind: str
    size: int = 0
    bad: str = ""
    blob: object = None


@contextmanager
def _named(path, form="{} "):
    """Put the file that is meant before a refusal's reason."""
    try:
        yield
    except Refused as refusal:
        raise Refused(form.format(path) + refusal.reason) from refusal


@contextmanager
def _guarded():
    """Hostile bytes can raise anything in a decoder: all of it refuses."""
    try:
        yield
    except Refused:
        raise
    except Exception as error:
        text = _cut(_shown(str(error)) or type(error).__name__, 200)
        raise Refused(f"is damaged: {text}") from error


def _junk(parts):
    return any(part.startswith(".") or part.casefold() in _JUNK
               for part in parts)


def _long(parts):
    if any(len(part) > NAME for part in parts):
        return f"has a name of more than {NAME} characters"
    if sum(map(len, parts)) + len(parts) > PATH:
        return f"has a path of more than {PATH:,} characters"
    return ""


_LEAVES = "leaves its folder by '..'"


def _split(name):
    """Return an archive's path in parts, and what is wrong with it."""
    path = name.replace("\\", "/")  # as old Windows tools write it
    parts = tuple(part for part in path.split("/") if part not in ("", "."))
    if path.startswith("/") or re.match("[A-Za-z]:/", path):
        return (path,), "has an absolute path"
    if parts[:1] == ("..",):
        return (path,), _LEAVES
    return parts, _LEAVES if ".." in parts else _long(parts)


def _big(size):
    if size > FILE:
        raise Refused(f"has {size:,} bytes; at most {FILE // MB} MB are "
                      "allowed")


def _take(file):
    """All bytes of an open file, refused as soon as they are too many."""
    taken = io.BytesIO()
    while chunk := file.read(CHUNK):
        taken.write(chunk)
        if taken.tell() > FILE:
            raise Refused(f"has more than {FILE // MB} MB, which is the most "
                          "that is allowed")
    return taken.getvalue()


class _OnDisk:
    """A file on disk. Never follows a link, never waits for a FIFO."""

    flags = os.O_RDONLY | sum(getattr(os, name, 0) for name in (
        "O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY"))

    def __init__(self, path):
        self.path = path

    def open(self):
        try:
            file = os.fdopen(os.open(self.path, self.flags), "rb")
        except OSError as error:
            raise Refused(f"can't be read: {error.strerror}") from error
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            file.close()
            raise Refused("is not an ordinary file")
        return file

    def size(self):
        with self.open() as file:
            return os.fstat(file.fileno()).st_size

    def check(self):
        _big(self.size())

    def data(self):
        with _guarded(), self.open() as file:
            _big(os.fstat(file.fileno()).st_size)
            return _take(file)


class _Member:
    """A member of an archive."""

    def __init__(self, archive, key, length):
        self.archive, self.key, self.length = archive, key, length

    def open(self):
        return io.BytesIO(self.data())

    def size(self):
        return self.length

    def check(self):
        _big(self.length)

    def data(self):
        self.check()
        with _guarded():
            return self.archive.data(self.key)


def _whole(path, wish):
    """The source of a whole class; raises ValueError."""
    root = os.path.realpath(path)
    try:
        mode = os.stat(root).st_mode
    except (OSError, ValueError) as error:
        raise ValueError(f"path: there is no {path}; allowed is "
                         f"{ALLOWED}") from error
    if stat.S_ISDIR(mode):
        return _Disk(root)
    if not stat.S_ISREG(mode):
        raise ValueError(f"path: {path} is neither a folder nor an ordinary "
                         f"file; allowed is {ALLOWED}")
    try:
        archive = _archive(_OnDisk(root), os.path.basename(root), CLASS,
                           wish.wanted)
    except Refused as refusal:
        raise ValueError(f"path: {path} {refusal.reason}; allowed is "
                         f"{ALLOWED}") from refusal
    if isinstance(archive, _One):
        raise ValueError(f"path: {path} is no archive; allowed is {ALLOWED}")
    return archive


class _Disk:
    """A folder with a folder or a file a student."""

    def __init__(self, root):
        self.root = root

    def entries(self):
        for entry in self._listing((), CLASS):
            if entry.kind == "folder" and not entry.bad:
                yield from self._below(entry)
            else:
                yield entry

    def _below(self, top):
        """A student's folder and all in it, or its one fault."""
        found, stack = [top], [top.parts]
        while stack:
            parts = stack.pop()
            for entry in self._listing(parts, ON_DISK):
                found.append(entry)
                if entry.kind == "folder" and not entry.bad:
                    stack.append(entry.parts)
            if len(found) > ON_DISK:
                return [_Entry(top.parts, "folder", bad=(
                    f"holds more than {ON_DISK:,} files and folders"))]
        return found

    def _listing(self, parts, limit):
        try:
            with os.scandir(os.path.join(self.root, *parts)) as items:
                items = list(itertools.islice(items, limit + 1))
        except OSError as error:
            bad = f"can't be listed: {error.strerror}"
            if not parts:
                raise Refused(bad) from error
            return [_Entry(parts, "folder", bad=bad)]
        if not parts and len(items) > limit:
            raise Refused(f"holds more than {limit:,} files and folders")
        items.sort(key=lambda item: item.name)
        return [self._entry((*parts, item.name), item) for item in items
                if not _junk([item.name])]

    @staticmethod
    def _entry(parts, item):
        try:
            status = item.stat(follow_symlinks=False)
        except OSError as error:
            return _Entry(parts, "file",
                          bad=f"can't be read: {error.strerror}")
        mode, bad = status.st_mode, _long(parts)
        if stat.S_ISDIR(mode) and not bad:
            return _Entry(parts, "folder")
        if not stat.S_ISREG(mode):
            bad = bad or f"is {_special(mode)}"
        return _Entry(parts, "file", status.st_size, bad, _OnDisk(item.path))


def _special(mode):
    for name, kind in {"a link": stat.S_IFLNK, "a FIFO": stat.S_IFIFO,
                       "a socket": stat.S_IFSOCK}.items():
        if stat.S_IFMT(mode) == kind:
            return name
    return "a device"


def _archive(blob, name, members, wanted=None):
    """The archive in a blob, told by its first bytes, not by its name.
    `wanted` is given for the archive of a class."""
    with _guarded(), blob.open() as file:
        head = file.read(16)
    if not head:
        raise Refused("is empty")
    for magic, kind in ((b"7z\xbc\xaf\x27\x1c", "7z"), (b"Rar!", "RAR")):
        if head.startswith(magic):
            raise Refused(f"is a {kind} archive: send a zip")
    named = _ARCHIVE.search(name)
    if head.startswith(b"PK") or named and named[1].lower() == "zip" and not (
            head.startswith(tuple(_MAGIC.values()))):
        return _Zip(blob, members, wanted)
    kind = next((kind for kind, magic in _MAGIC.items()
                 if head.startswith(magic)), "")
    if not named and (kind and wanted is None or not kind):
        return _One(blob, _PACKED.sub("", name), kind)
    return _Tar(blob, members, kind, wanted)


def _unpacked(size, packed, wanted=None):
    """Refuse what a student's archive unpacks to, if it is too much."""
    if wanted is not None:
        return
    if size > UNPACKED:
        raise Refused(f"unpacks to more than {UNPACKED // MB} MB, which is "
                      "the most that is allowed")
    if size > FREE and size > RATIO * packed:
        raise Refused(f"unpacks to more than {RATIO} times its size, as only "
                      "a zip bomb does")


def _crowded(members):
    return Refused(f"has more than {members:,} members, which is the most "
                   "that is allowed")


class _Guard:
    """A zip's file. While the table is read it gives no more than as many
    members need as are allowed, before zipfile makes objects of them; and
    every process opens it anew, for forked ones would share one position."""

    def __init__(self, blob, members):
        self.blob, self.members, self.listing = blob, members, True
        self.file, self.process = blob.open(), os.getpid()
        self.most = members * ENTRY + 2 * CHUNK

    def _own(self):
        if self.process != os.getpid():
            self.file.close()
            self.file, self.process = self.blob.open(), os.getpid()
        return self.file

    def seekable(self):
        return True

    def tell(self):
        return self._own().tell()

    def seek(self, *where):
        return self._own().seek(*where)

    def close(self):
        self.file.close()

    def read(self, size=-1):
        if not self.listing:
            return self._own().read(size)
        size = self.most + 1 if size is None or size < 0 else size
        data = self._own().read(min(size, self.most + 1))
        if len(data) > self.most or data.count(b"PK\1\2") > self.members:
            raise _crowded(self.members)
        return data


class _Zip:
    """A zip. That of a class stays open, for its table is long; a student's
    is opened for each reading."""

    def __init__(self, blob, members, wanted):
        self.blob, self.members, self.wanted = blob, members, wanted
        self.held = None

    def __getstate__(self):
        return {**self.__dict__, "held": None}

    @contextmanager
    def _opened(self):
        if self.held:
            yield self.held
            return
        file = _Guard(self.blob, self.members)
        try:
            archive = zipfile.ZipFile(file)
            file.listing = False
            if self.wanted is not None:
                self.held = archive
                weakref.finalize(self, file.close)
            yield archive
        finally:
            if not self.held:
                file.close()

    def entries(self):
        with _guarded(), self._opened() as archive:
            infos = archive.infolist()
            if len(infos) > self.members:
                raise _crowded(self.members)
            _unpacked(sum(info.file_size for info in infos),
                      self.blob.size(), self.wanted)
            found = [self._entry(info) for info in infos]
        return [entry for entry in found if entry]

    def _entry(self, info):
        name = _zip_name(info)
        parts, bad = _split(name)
        if not parts or not bad and _junk(parts):
            return None
        mode = info.external_attr >> 16
        folder = name.endswith(("/", "\\")) or stat.S_ISDIR(mode)
        bad = bad or _zip_fault(info, mode)
        return _Entry(parts, "folder" if folder else "file", info.file_size,
                      bad, _Member(self, info, info.file_size))

    def data(self, info):
        with self._opened() as archive, archive.open(info) as member:
            return _take(member)


def _zip_name(info):
    """A member's name. macOS and PHP write UTF-8 and don't say so, and then
    zipfile reads it as code page 437."""
    name = info.orig_filename
    if not info.flag_bits & 0x800:
        try:
            return name.encode("cp437").decode("utf-8")
        except UnicodeError:
            pass
    return name


def _zip_fault(info, mode):
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
        return f"is {_special(mode)}"
    if info.flag_bits & 0x2041:  # encrypted, in any of three ways
        return "is encrypted"
    # LZMA's dictionary takes what memory it likes; bzip2 has no bound either.
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return (f"is packed by method {info.compress_type}; allowed are "
                "stored and deflated, which is what every zip tool makes")
    return ""


class _Stream:
    """A tar, read once from front to back, and counted.

    tarfile trusts headers: a size below zero sends it round in circles, a
    long header is read into memory at once, and a long run of digits in one
    keeps its regular expression busy for hours. None of them passes here.
    `account` is told how far the reading is, `room` is for long headers.
    """

    def __init__(self, file, kind, account, room):
        self.file, self.account, self.room = file, account, room
        self.chunks = _inflated(file, kind) if kind else None
        self.at, self.rest, self.last = 0, b"", b""

    def tell(self):
        return self.at

    def read(self, size=-1):
        """A header, for tarfile."""
        self.room -= size if size > 512 else 0
        if not 0 <= size <= HEADER or self.room < 0:
            raise Refused("is damaged: a header is too long")
        self.last = data = b"".join(self.pull(size))
        # No name on any disk has so many digits.
        if size > 512 and re.search(rb"\d{256}", data):
            raise Refused("is damaged: a number in a header is too long")
        return data

    def seek(self, position, _whence=0):
        if position < self.at:
            raise Refused("is damaged: its members overlap")
        if self.chunks is None:
            self.at = self.file.seek(position)
        else:
            for _ in self.pull(position - self.at):
                pass

    def pull(self, size):
        """Yield the next `size` bytes in chunks, fewer at the end."""
        while size > 0:
            if self.chunks is None:
                chunk = self.file.read(min(size, CHUNK))
            else:
                chunk = self.rest or next(self.chunks, b"")
                chunk, self.rest = chunk[:size], chunk[size:]
            if not chunk:
                return
            size -= len(chunk)
            self.at += len(chunk)
            self.account(self.at)
            yield chunk


def _inflated(file, kind):
    """Yield what a gzip, bzip2 or xz file unpacks to, in small chunks."""
    make = {"gz": lambda: zlib.decompressobj(31), "bz2": bz2.BZ2Decompressor,
            "xz": lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, MEMORY)}[kind]
    machine, packed, parts = make(), file.read(CHUNK), 1
    while True:
        chunk = machine.decompress(packed, CHUNK)
        packed = getattr(machine, "unconsumed_tail", b"")
        if chunk:
            yield chunk
        if machine.eof:
            packed = _next_part(file, machine.unused_data)
            if not packed.startswith(_MAGIC[kind]):
                return  # padding, or what other tools ignore too
            machine, parts = make(), parts + 1
            if parts > JOINED:
                raise Refused(f"joins more than {JOINED:,} compressed parts")
        elif not packed and getattr(machine, "needs_input", True):
            packed = file.read(CHUNK)
            if not packed and not chunk:
                raise Refused("is damaged: it ends too early")


def _next_part(file, packed):
    """What follows the end of a compressed part: several may be joined."""
    packed = packed.lstrip(b"\0")
    while len(packed) < 6 and (more := file.read(CHUNK)):
        packed = (packed + more).lstrip(b"\0")
    return packed


class _Tar:
    """A tar, compressed or not. One reading of a compressed tar passes all
    that stands before: that of a class keeps what will be asked for."""

    def __init__(self, blob, members, kind, wanted):
        self.blob, self.members, self.kind = blob, members, kind
        self.wanted, self.kept, self.room = wanted, {}, KEPT

    def __getstate__(self):
        return {**self.__dict__, "kept": {}}

    @contextmanager
    def _opened(self):
        packed = self.blob.size() if self.kind else float("inf")
        with self.blob.open() as file:
            yield _Stream(file, self.kind,
                          lambda at: _unpacked(at, packed, self.wanted),
                          self.members * HEADERS)

    def entries(self):
        with _guarded(), self._opened() as stream:
            tar = tarfile.TarFile(fileobj=stream, mode="r")
            found, size = [], 0
            for count in itertools.count(1):
                info = tar.next()
                if info is None:
                    break
                tar.members = []  # else it keeps every header
                if count > self.members:
                    raise _crowded(self.members)
                size += max(info.size, 0)
                _unpacked(size, float("inf"), self.wanted)
                found.append(self._entry(info, stream))
            # tarfile takes any odd block for the end, and says nothing.
            if stream.last.strip(b"\0") or len(stream.last) < 512:
                raise Refused("is damaged: it ends too early")
        return [entry for entry in found if entry]

    def _entry(self, info, stream):
        parts, bad = _split(info.name)
        if not parts or not bad and _junk(parts):
            return None
        bad = bad or _tar_fault(info)
        key = (info.offset_data, info.size)
        if info.isreg() and not bad:
            self._keep(parts, key, stream)
        return _Entry(parts, "folder" if info.isdir() else "file", info.size,
                      bad, _Member(self, key, info.size))

    def _keep(self, parts, key, stream):
        if not (self.kind and self.wanted and self.wanted(parts)
                and key[1] <= FILE):
            return
        packed = zlib.compress(self._cut(stream, key), 1)
        if len(packed) <= self.room:
            self.kept[key] = packed
            self.room -= len(packed)

    @staticmethod
    def _cut(stream, key):
        stream.seek(key[0])
        data = b"".join(stream.pull(key[1]))
        if len(data) < key[1]:
            raise Refused("is damaged: it ends too early")
        return data

    def data(self, key):
        if key in self.kept:
            return zlib.decompress(self.kept[key])
        with self._opened() as stream:
            return self._cut(stream, key)


def _tar_fault(info):
    if info.issym() or info.islnk():
        return "is a link"
    if info.isfifo():
        return "is a FIFO"
    if info.isdev():
        return "is a device"
    if info.issparse() or info.type == tarfile.GNUTYPE_SPARSE:
        return "is a sparse file"
    if info.size < 0 or not (info.isreg() or info.isdir()):
        return "is neither a file nor a folder"
    return ""


class _One:
    """A single notebook packed by gzip, bzip2 or xz."""

    def __init__(self, blob, name, kind):
        self.blob, self.name, self.kind = blob, name, kind

    def entries(self):
        if not self.kind:
            raise Refused("is damaged: it is not what its name says")
        return [_Entry((self.name,), "file",
                       blob=_Member(self, None, 0))]

    def data(self, _key):
        packed, taken = self.blob.size(), io.BytesIO()
        with self.blob.open() as file:
            for chunk in _inflated(file, self.kind):
                taken.write(chunk)
                _unpacked(taken.tell(), packed)
                _big(taken.tell())
        return taken.getvalue()
