"""What keys may do, what is recorded of who did what, and why keys are refused and logins end: all as codes."""

from enum import StrEnum


class Role(StrEnum):
    """What a key may do."""

    SUBMITTER = "submitter"  # send studies, see their state
    RADIOLOGIST = "radiologist"  # read the worklist, pictures and identities
    ADMIN = "admin"  # everything at one site
    OPERATOR = "operator"  # what concerns all sites: models, runs over history, metrics, sites' keys; no patient


_CONTAINS = {
    Role.SUBMITTER: frozenset({Role.SUBMITTER}),
    Role.RADIOLOGIST: frozenset({Role.RADIOLOGIST}),
    Role.ADMIN: frozenset({Role.SUBMITTER, Role.RADIOLOGIST, Role.ADMIN}),
    Role.OPERATOR: frozenset({Role.OPERATOR}),
}


def roles_of(role: Role, *, operates: bool) -> frozenset[Role]:
    """Expand a role.

    Args:
        role: of the key.
        operates: whether an admin's key is an operator's too.

    Returns:
        All roles that the key has.
    """
    return _CONTAINS[role] | ({Role.OPERATOR} if operates else frozenset())


class System(StrEnum):
    """Who acts without a key. No key may have such a name, since it could be mistaken for one of these."""

    BEAT = "system:beat"  # the schedule
    CHECK = "system:check"  # the daily check
    INTAKE = "system:intake"  # a file that an administrator has decided about
    SWEEPER = "system:sweeper"  # a worker, on its own account
    PREPARE = "system:prepare"  # `python -m infra.prepare`, at each start
    MIGRATION = "system:migration"


SYSTEM_PREFIX = "system:"


class Subject(StrEnum):
    """The kind of thing that an event is about."""

    SITE = "site"  # its id is the site's name
    KEY = "key"
    MODEL = "model"  # its id is the model's name
    STUDY = "study"
    IMAGE = "image"
    HELD_FILE = "held-file"
    SETTING = "setting"  # its id is the setting's code
    RUN = "run"  # over history
    PEER = "dicom-peer"
    DESTINATION = "destination"
    DATABASE = "database"


class EventKind(StrEnum):
    """What happened. The row says who did it, from where, when, and to what, in codes, names of keys and numbers."""

    LOGIN = "login"
    LOGOUT = "logout"
    LOGIN_FAILED = "login-failed"  # at the page; detail: reason
    KEY_REFUSED = "key-refused"  # at the API; detail: reason
    THROTTLED = "throttled"  # too many failures: an address, or a key, has to wait
    NEW_ADDRESS = "new-address"  # a key was used from there for the first time
    SITE_MADE = "site-made"
    KEY_MADE = "key-made"
    KEY_REVOKED = "key-revoked"
    MODEL_STORED = "model-stored"
    MODEL_ACTIVATED = "model-activated"
    MODEL_SHADOWED = "model-shadowed"
    MODEL_RETIRED = "model-retired"
    EXPORT = "export"  # many studies' data left the system
    STUDY_RELEASED = "study-released"  # from quarantine, or images of it that broke their decoder
    STUDY_DISMISSED = "study-dismissed"  # of the quarantine: nothing is to be done
    STUDY_DELETED = "study-deleted"
    IMAGE_DELETED = "image-deleted"
    INSTANCES_REJECTED = "instances-rejected"  # by a Key Object Selection Document
    HELD_DECIDED = "held-decided"  # held files: a conflict or a correction
    SETTING_CHANGED = "setting-changed"
    PEER_ADMITTED = "peer-admitted"  # a DICOM sender was added
    PEER_CHANGED = "peer-changed"
    PEER_DISABLED = "peer-disabled"
    PEER_ENABLED = "peer-enabled"
    DESTINATION_ADDED = "destination-added"  # results go there from now on
    DESTINATION_CHANGED = "destination-changed"
    DESTINATION_DISABLED = "destination-disabled"
    DESTINATION_ENABLED = "destination-enabled"
    DELIVERY_RETRIED = "delivery-retried"  # a failed or held one, as a person decided
    RESULTS_ASKED = "results-asked"  # of a study, to be made and sent at once
    RUN_BEGUN = "run-begun"  # over history, by the schedule
    IDENTITY_KEY_ACCEPTED = "identity-key-accepted"
    SCHEMA_CHANGED = "schema-changed"


FAILURES = (EventKind.LOGIN_FAILED, EventKind.KEY_REFUSED)  # what is counted against an address and a key


class KeyRefusal(StrEnum):
    """Why a key or a login was not taken."""

    WRONG = "wrong"  # there is no such key
    REVOKED = "revoked"
    EXPIRED = "expired"
    ROLE = "role"  # it may not open the pages


class LoginEnd(StrEnum):
    """Why a login of the pages ended."""

    LOGGED_OUT = "logged-out"
    IDLE = "idle"
    REVOKED = "revoked"  # its key was
    EXPIRED = "expired"  # its key has
    OLD = "old"  # it lasted as long as a login may
