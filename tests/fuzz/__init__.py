"""Hostile and odd input, from the bytes of an upload to findings.

Covered, for every case: the spool and the multipart parser (api.spool), archives (api.intake.archives), the header check
(shared.dicom.header), decoding and the preview (shared.pixels.decode, .codecs, worker.decoder_pool.preview), the network's
square (shared.pixels.tensors), and a finding in words (shared.model.predictor) from a network that is arithmetic.
What must hold: the process lives, answers within limits of time and memory, and the result is findings or a named
error (a Rejected with a reason and a DICOM failure code; a BadRequest for a multipart body) that quotes neither the
patient nor another exception; nothing printed, logged or warned names the patient; API and worker read the same size
from the same bytes; what is stored is text that a database takes.

`sound` makes the files that all starts from, of every transfer syntax; `specimen` takes them apart; `mutators` and
`containers` change them; `cases` gives each case a name that makes it again; `path` is the way and what is watched;
`campaign` runs cases in children. A case again: python -m tests.fuzz 'CASE'; more of them: OSTEON_FUZZ_CASES=200000
with pytest, or python -m tests.fuzz --cases N --first N. corpus/ keeps the files that once failed.

Not covered: the real network and OpenVINO, whose input is always a square of bytes; the database and the store, which
get what `path` checks; images near the default limits of 60 million pixels (limits and files are 60 times smaller
here, so that thousands of cases take minutes); several hostile files at once in one process; DICOMDIR and DIMSE.
"""
