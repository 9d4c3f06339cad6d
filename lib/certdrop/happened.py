"""The names of what is logged, but for root's runs, which events.py names. Runs as: whoever imports it. Trusts, reads, writes: nothing."""

# an administrator's verbs
ADDED = "site-added"
NAMES = "site-names-changed"
REMOVED = "site-removed"
BURNT = "key-burnt"
# issuer
RUN = "run"
ISSUED = "issued"
REVOKED = "revoked"
FAILED = "failed"
REGISTERED = "account-registered"
REPLACED = "account-replaced"
CONTACT = "account-contact"
KEY_CHANGED = "account-key-changed"
DEACTIVATED = "account-deactivated"
SILENT = "not-seen-to-run"
WAITS = "waits-for-tlsa"
NOT_SIGNED = "not-signed"
UNCONFINED = "sandbox-missing"
# watcher
MAILED = "mailed"
MAIL_FAILED = "mail-failed"
