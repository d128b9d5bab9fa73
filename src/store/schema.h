/* The database's schema as a list of migrations. PRAGMA user_version holds how many have run. A migration that has
 * been released is never edited: add one. */
#pragma once

static const char *const store_migrations[] = {
    /* 1 */
    "CREATE TABLE value (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;"
    "CREATE TABLE vm ("
    "  id TEXT PRIMARY KEY, host TEXT NOT NULL, user TEXT NOT NULL, type TEXT NOT NULL, state TEXT NOT NULL,"
    "  ended INTEGER NOT NULL, state_since_ms INTEGER NOT NULL, created_ms INTEGER NOT NULL, ip INTEGER NOT NULL,"
    "  mac BLOB NOT NULL, tap TEXT NOT NULL, bridge TEXT NOT NULL, vcpus INTEGER NOT NULL,"
    "  memory_mib INTEGER NOT NULL, uid INTEGER NOT NULL, image TEXT NOT NULL, vmm TEXT NOT NULL,"
    "  reason TEXT NOT NULL, reachable INTEGER NOT NULL, pid INTEGER NOT NULL, pid_start INTEGER NOT NULL"
    ") WITHOUT ROWID;"
    /* Unique among the living of a host: an ended VM keeps its record and gives its names back. */
    "CREATE UNIQUE INDEX vm_ip ON vm (host, bridge, ip) WHERE ended = 0;"
    "CREATE UNIQUE INDEX vm_mac ON vm (mac) WHERE ended = 0;"
    "CREATE UNIQUE INDEX vm_tap ON vm (host, tap) WHERE ended = 0;"
    "CREATE UNIQUE INDEX vm_uid ON vm (host, uid) WHERE ended = 0;"
    "CREATE INDEX vm_user ON vm (user, ended);"
    "CREATE INDEX vm_created ON vm (created_ms);"
    "CREATE TABLE event ("
    "  n INTEGER PRIMARY KEY, vm_id TEXT NOT NULL, at_ms INTEGER NOT NULL, actor TEXT NOT NULL, event TEXT NOT NULL,"
    "  from_state TEXT NOT NULL, to_state TEXT NOT NULL, reason TEXT NOT NULL);"
    "CREATE INDEX event_vm ON event (vm_id, n);"
    "CREATE TABLE session ("
    "  id TEXT PRIMARY KEY, host TEXT NOT NULL, user TEXT NOT NULL, provider TEXT NOT NULL, status TEXT NOT NULL,"
    "  ended INTEGER NOT NULL, vm_id TEXT NOT NULL, created_ms INTEGER NOT NULL, timeout_ms INTEGER NOT NULL,"
    "  reason TEXT NOT NULL) WITHOUT ROWID;"
    "CREATE UNIQUE INDEX session_active ON session (user, provider) WHERE ended = 0;"
    "CREATE TABLE secret ("
    "  hash BLOB NOT NULL, kind INTEGER NOT NULL, session_id TEXT NOT NULL, expires_ms INTEGER NOT NULL,"
    "  PRIMARY KEY (hash, kind)) WITHOUT ROWID;",
    /* 2: events are about sessions too, and a session knows when its page was last there */
    "ALTER TABLE event RENAME COLUMN vm_id TO about;"
    "ALTER TABLE session ADD COLUMN seen_ms INTEGER NOT NULL DEFAULT 0;"
    "CREATE INDEX session_vm ON session (vm_id);",
    /* 3: tokens of users */
    "CREATE TABLE token ("
    "  id TEXT PRIMARY KEY, hash BLOB NOT NULL UNIQUE, user TEXT NOT NULL, note TEXT NOT NULL,"
    "  created_ms INTEGER NOT NULL, expires_ms INTEGER NOT NULL, used_ms INTEGER NOT NULL) WITHOUT ROWID;",
    /* 4: the vault */
    "CREATE TABLE credential ("
    "  user TEXT NOT NULL, provider TEXT NOT NULL, version INTEGER NOT NULL, owner_vm TEXT NOT NULL,"
    "  created_ms INTEGER NOT NULL, updated_ms INTEGER NOT NULL, key_id BLOB NOT NULL, wrapped BLOB NOT NULL,"
    "  sealed BLOB NOT NULL, PRIMARY KEY (user, provider));",
    /* 5: the event of a VM's end says where its evidence is */
    "ALTER TABLE event ADD COLUMN evidence TEXT NOT NULL DEFAULT '';",
    /* 6: a user who has logged out in the VM stays logged out */
    "ALTER TABLE credential ADD COLUMN logged_out_ms INTEGER NOT NULL DEFAULT 0;",
};
