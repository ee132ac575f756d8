"""The build graph: a page's text -> its executed notebook -> the book.

What is up to date is decided by contents (see compendium.pages), not by modification times, which a clone
scrambles. A notebook is no `output` here, since Snakemake deletes the outputs of a failed job, and a page that
fails is to leave its last good notebook alone; a receipt in .work stands for it.

One build runs at a time. Snakemake's own lock outlives a build that is killed, so `make book` does without
(`--nolock`); the system releases the lock used here when the process ends, however it ends.
"""

import fcntl
import sys
from pathlib import Path

from compendium import pages

RECEIPTS = ".work/executed/{page}"

if workflow.is_main_process:  # its jobs are processes that read this file, too
    Path(".work").mkdir(exist_ok=True)
    lock = Path(".work/book.lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("another `make book` is running here: waiting until it ends", file=sys.stderr, flush=True)
        fcntl.flock(lock, fcntl.LOCK_EX)

for page in pages.page_ids():
    if pages.problems(page):
        Path(RECEIPTS.format(page=page)).unlink(missing_ok=True)


rule book:
    input:
        expand(RECEIPTS, page=pages.page_ids()),
    params:
        jupyter_book=Path(sys.executable).with_name("jupyter-book"),
    shell:
        "{params.jupyter_book:q} build book"


rule page:
    input:
        ancient("book/{page}.md"),
    output:
        touch(RECEIPTS),
    shell:
        "{sys.executable:q} -m compendium.pages execute {input:q}"
