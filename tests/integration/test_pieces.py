"""Keyed pieces of identities: made, changed and deleted with them, and what they tell of them."""

from string import ascii_lowercase
from uuid import UUID, uuid4

from cryptography.fernet import Fernet
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import func, select, text, update

from shared.db.tables import IdentityRow, StudyRow
from shared.domain.deletion import DeletionReason
from shared.domain.matching import NamePattern, TextPattern
from shared.domain.study import Header, Identity, StoredFile
from shared.queries.access import PIECE_BUCKETS, PIECE_NUMBERS, PIECED, Vault, find_key
from shared.queries.deletions import delete_study
from tests.hospital import Hospital

SITE = uuid4()
VAULT = Vault(Fernet.generate_key().decode())
PATTERNS = st.lists(st.sampled_from(["*", "?", "^", "sm", "smi", "ith", "jo", "hn", "47", "11", " "]), max_size=6)


def taken_in(hospital: Hospital, number: int, identity: Identity) -> UUID:
    plain = hospital.file(number, 0)
    return hospital.take_in([StoredFile(plain.sha256, 9, Header(**{**vars(plain.header), "identity": identity}))])


def stored(hospital: Hospital) -> dict[UUID, list[int] | None]:
    with hospital.database.transaction() as session:
        return {row.study_id: row.pieces for row in session.scalars(select(IdentityRow))}


@given(PATTERNS.map("".join))
def test_what_matches_has_the_pieces(pattern: str) -> None:
    """The numbers that are looked for are numbers of each identity that matches, and fit Postgres' integers."""
    one = Identity("Smith^John", "P-4711", accession_number="A 11", study_description="Hand 2 views")
    there = VAULT.piece_numbers(SITE, one)
    assert all(-(1 << 31) <= number < 1 << 31 for number in there)
    for kind in PIECED:
        value = getattr(one, kind)
        pattern_of = NamePattern if kind == "patient_name" else TextPattern
        if pattern_of(pattern).matches(value):
            assert set(VAULT.pieces_wanted(SITE, kind, pattern)) <= set(there)


def test_a_site_has_few_numbers_and_none_of_another(hospital: Hospital) -> None:
    """Each number of three letters stands for several; two sites, or two keys, have different ones for one name."""
    del hospital
    many = {
        number
        for letters in range(3000)
        for number in VAULT.piece_numbers(SITE, Identity(f"N{letters:05}", f"{letters:09}"))
    }
    few = {number for number in many if number % PIECE_NUMBERS < PIECE_BUCKETS}
    assert 1000 < len(few) <= PIECE_BUCKETS < len(many) + PIECE_BUCKETS
    name = Identity("SMITH^JOHN")
    assert not set(VAULT.piece_numbers(uuid4(), name)) & set(VAULT.piece_numbers(SITE, name))
    assert VAULT.piece_numbers(SITE, name) != Vault(Fernet.generate_key().decode()).piece_numbers(SITE, name)
    assert VAULT.piece_numbers(SITE, Identity("4711")) != VAULT.piece_numbers(SITE, Identity(patient_id="4711"))


def test_two_letters_have_nearly_always_a_number_of_their_own() -> None:
    """A pattern of two letters chooses by one number: what no name has must not find all that have another piece."""
    pairs = [one + other for one in ascii_lowercase for other in ascii_lowercase]
    found = {pair: VAULT.pieces_wanted(SITE, "patient_name", f"*{pair}*") for pair in pairs}
    assert all(len(numbers) == 1 for numbers in found.values())
    assert len({numbers[0] for numbers in found.values()}) > 0.97 * len(pairs)
    others = "".join(ascii_lowercase[(at * at + 3 * at) % 26] for at in range(400))  # many pieces, of other attributes
    taken = set(
        VAULT.piece_numbers(SITE, Identity("", others, accession_number=others[::-1], study_description=others[7:]))
    )
    assert sum(numbers[0] in taken for numbers in found.values()) < 0.03 * len(pairs)


def test_pieces_are_those_of_the_identity_that_is_shown(hospital: Hospital) -> None:
    """Made with a study, renewed with its identity, and gone with it."""
    study = taken_in(hospital, 1, Identity("SMITH^JOHN"))
    assert stored(hospital)[study] == hospital.vault.piece_numbers(hospital.site_id, Identity("SMITH^JOHN"))
    with hospital.database.transaction() as session:
        hospital.vault.change_identity(session, hospital.site_id, study, Identity("SMYTHE^JOHN"))
    assert stored(hospital)[study] == hospital.vault.piece_numbers(hospital.site_id, Identity("SMYTHE^JOHN"))
    with hospital.database.transaction() as session:
        key = find_key(session, "a secret")
        assert key is not None
        delete_study(session, hospital.vault, key, study, DeletionReason.TEST)
    assert stored(hospital) == {}


def test_studies_from_before_get_their_pieces(hospital: Hospital) -> None:
    """Bounded steps write what is missing, each study once, also of an identity that cannot be decrypted."""
    studies = [taken_in(hospital, number, Identity(f"NAME{number}")) for number in range(5)]
    before = stored(hospital)
    with hospital.database.transaction() as session:
        session.execute(text("UPDATE identities SET pieces = NULL"))
        sealed = VAULT.seal({"patient_name": "X"})
        session.execute(update(IdentityRow).where(IdentityRow.study_id == studies[0]).values(ciphertext=sealed))
    steps = []
    with hospital.database.transaction() as session:
        while step := hospital.vault.make_searchable(session, 2):
            steps.append(step)
    assert steps == [2, 2, 1]
    assert stored(hospital) == before | {studies[0]: []}


def test_the_index_is_used(hospital: Hospital) -> None:
    """A pattern is looked up by the index alone, however many studies there are."""
    study = taken_in(hospital, 1, Identity("SMITH^JOHN"))
    wanted = hospital.vault.pieces_wanted(hospital.site_id, "patient_name", "*mith*")
    with hospital.database.transaction() as session:
        session.execute(text("SET LOCAL enable_seqscan = off"))
        found = select(StudyRow.id).join(IdentityRow).where(IdentityRow.pieces.contains(wanted))
        assert session.scalars(found).all() == [study]
        plan = "\n".join(session.scalars(text("EXPLAIN SELECT FROM identities WHERE pieces @> ARRAY[1, 2]")))
        assert "ix_identities_pieces" in plan
        assert session.scalar(select(func.count()).select_from(IdentityRow)) == 1
