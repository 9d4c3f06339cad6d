-- The fleet's database: what hosts post, what desks answer, and who may do what. Run it as the database's superuser, in a database of its own;
-- running it again changes nothing. PostgreSQL 15 and later.
--
--     createdb certdrop && psql -X -v ON_ERROR_STOP=1 -1 -d certdrop -f schema.sql
--
-- Every machine is a role that logs in by a TLS certificate (CN = role), and belongs to one of three groups. A host sees and writes its own rows alone.
-- Nothing here is secret, and nothing here is believed: what a host wants is signed by its root, and the desk's signer looks at that. So whoever owns
-- this database can withhold and delay.

SET client_min_messages = warning;
SET lock_timeout = '20s';

DO $$
DECLARE
    wanted text;
BEGIN
    FOREACH wanted IN ARRAY ARRAY['certdrop_host', 'certdrop_desk', 'certdrop_watch'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = wanted) THEN
            EXECUTE format('CREATE ROLE %I NOLOGIN', wanted);
        END IF;
    END LOOP;
END $$;

CREATE SCHEMA IF NOT EXISTS certdrop;

-- Who is enrolled, and when it was last here.
CREATE TABLE IF NOT EXISTS certdrop.machine (
    name text PRIMARY KEY CHECK (name ~ '^[a-z0-9][a-z0-9-]{0,30}$'),
    kind text NOT NULL CHECK (kind IN ('host', 'desk')),
    quota integer NOT NULL DEFAULT 1000,
    enrolled timestamptz NOT NULL DEFAULT now(),
    seen timestamptz
);
-- Of a desk: which hosts it believes, by its own word. It takes the work of no others; and of what two believe, each has its sites.
ALTER TABLE certdrop.machine ADD COLUMN IF NOT EXISTS knows text[] NOT NULL DEFAULT '{}';

-- What root of a host wants: a certificate for this CSR, or a revocation. `now` has root's signature for "now".
CREATE TABLE IF NOT EXISTS certdrop.request (
    host text NOT NULL DEFAULT session_user REFERENCES certdrop.machine ON DELETE CASCADE,
    name text NOT NULL CHECK (name ~ '^[a-z0-9][a-z0-9._-]*$' AND length(name) <= 160),
    number integer NOT NULL CHECK (number BETWEEN 1 AND 999999999),
    kind text NOT NULL CHECK (kind IN ('csr', 'revoke')),
    body text NOT NULL CHECK (octet_length(body) <= 16384),
    sig text NOT NULL CHECK (octet_length(sig) <= 200),
    now text NOT NULL DEFAULT '' CHECK (octet_length(now) <= 200),
    posted timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (host, name, number, kind)
);

-- By what the desk decides when: the live certificate, what root refused. The host's word.
CREATE TABLE IF NOT EXISTS certdrop.state (
    host text NOT NULL DEFAULT session_user REFERENCES certdrop.machine ON DELETE CASCADE,
    name text NOT NULL CHECK (name ~ '^[a-z0-9][a-z0-9._-]*$' AND length(name) <= 160),
    body text NOT NULL CHECK (octet_length(body) <= 65536),
    PRIMARY KEY (host, name)
);

-- Which desk has it, until when; what came of it so far.
CREATE TABLE IF NOT EXISTS certdrop.work (
    host text NOT NULL, name text NOT NULL, number integer NOT NULL, kind text NOT NULL,
    desk text NOT NULL DEFAULT '',
    until timestamptz NOT NULL DEFAULT '-infinity',
    said text NOT NULL DEFAULT '' CHECK (octet_length(said) <= 16384),
    PRIMARY KEY (host, name, number, kind),
    FOREIGN KEY (host, name, number, kind) REFERENCES certdrop.request ON DELETE CASCADE
);
CREATE INDEX IF NOT EXISTS work_by_desk ON certdrop.work (desk);

-- What the CA answered. A reply that root refused is followed by another answer.
CREATE TABLE IF NOT EXISTS certdrop.reply (
    host text NOT NULL, name text NOT NULL, number integer NOT NULL,
    kind text NOT NULL DEFAULT 'csr' CHECK (kind = 'csr'),
    answer integer NOT NULL CHECK (answer BETWEEN 1 AND 50),
    chain text NOT NULL CHECK (octet_length(chain) <= 65536),
    answered timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (host, name, number, kind, answer),
    FOREIGN KEY (host, name, number, kind) REFERENCES certdrop.request ON DELETE CASCADE
);

-- What was answered last of each site, signed by root of its host: from that each desk learns what the others finalized. It outlasts the request.
CREATE TABLE IF NOT EXISTS certdrop.past (
    host text NOT NULL REFERENCES certdrop.machine ON DELETE CASCADE,
    name text NOT NULL, number integer NOT NULL, body text NOT NULL, sig text NOT NULL,
    PRIMARY KEY (host, name, number)
);

-- A host's rows are counted, one insertion at a time, and what it posts becomes work. What it cannot set is set here.
CREATE OR REPLACE FUNCTION certdrop.posting() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    most integer;
    found integer;
BEGIN
    SELECT quota INTO most FROM certdrop.machine WHERE name = NEW.host AND kind = 'host' FOR UPDATE;
    EXECUTE format('SELECT count(*) FROM certdrop.%I WHERE host = $1', TG_TABLE_NAME) INTO found USING NEW.host;
    IF most IS NULL OR found >= most THEN
        RAISE EXCEPTION 'the quota of % is used up: % rows in %', NEW.host, found, TG_TABLE_NAME USING ERRCODE = 'disk_full';
    END IF;
    RETURN NEW;
END $$;

CREATE OR REPLACE FUNCTION certdrop.posted() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF TG_OP = 'INSERT' AND TG_TABLE_NAME = 'request' THEN
        INSERT INTO certdrop.work (host, name, number, kind) VALUES (NEW.host, NEW.name, NEW.number, NEW.kind);
    END IF;
    PERFORM pg_notify('certdrop_desk', '');
    RETURN NULL;
END $$;

CREATE OR REPLACE FUNCTION certdrop.answered() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF TG_TABLE_NAME = 'reply' THEN
        INSERT INTO certdrop.past SELECT host, name, number, body, sig FROM certdrop.request
            WHERE (host, name, number, kind) = (NEW.host, NEW.name, NEW.number, 'csr') ON CONFLICT DO NOTHING;
        DELETE FROM certdrop.past WHERE host = NEW.host AND name = NEW.name AND number <= NEW.number - 4;
    END IF;
    PERFORM pg_notify('certdrop_host_' || NEW.host, '');
    RETURN NULL;
END $$;

-- A machine was here.
CREATE OR REPLACE FUNCTION certdrop.here() RETURNS void LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS
$$ UPDATE certdrop.machine SET seen = now() WHERE name = session_user $$;
CREATE OR REPLACE FUNCTION certdrop.here(a_knows text[]) RETURNS void LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS
$$ UPDATE certdrop.machine SET seen = now(), knows = CASE WHEN knows = a_knows THEN knows ELSE a_knows END
   WHERE name = session_user AND kind = 'desk' $$;

-- What a host takes away of its own. It has no right to DELETE, with which it could LOCK a whole table.
CREATE OR REPLACE FUNCTION certdrop.forget_request(a_name text, a_number integer, a_kind text) RETURNS void LANGUAGE sql
    SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS
$$ DELETE FROM certdrop.request WHERE host = session_user AND name = a_name AND number = a_number AND kind = a_kind $$;
CREATE OR REPLACE FUNCTION certdrop.forget_state(a_name text) RETURNS void LANGUAGE sql
    SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS
$$ DELETE FROM certdrop.state WHERE host = session_user AND name = a_name $$;

REVOKE ALL ON FUNCTION certdrop.posting(), certdrop.posted(), certdrop.answered(), certdrop.forget_request(text, integer, text),
    certdrop.forget_state(text), certdrop.here(), certdrop.here(text[]) FROM PUBLIC;

CREATE OR REPLACE TRIGGER posting BEFORE INSERT ON certdrop.request FOR EACH ROW EXECUTE FUNCTION certdrop.posting();
CREATE OR REPLACE TRIGGER posting BEFORE INSERT ON certdrop.state FOR EACH ROW EXECUTE FUNCTION certdrop.posting();
CREATE OR REPLACE TRIGGER posted AFTER INSERT OR UPDATE OR DELETE ON certdrop.request FOR EACH ROW EXECUTE FUNCTION certdrop.posted();
CREATE OR REPLACE TRIGGER posted AFTER INSERT OR UPDATE OR DELETE ON certdrop.state FOR EACH ROW EXECUTE FUNCTION certdrop.posted();
CREATE OR REPLACE TRIGGER answered AFTER INSERT ON certdrop.reply FOR EACH ROW EXECUTE FUNCTION certdrop.answered();
CREATE OR REPLACE TRIGGER answered AFTER UPDATE ON certdrop.work FOR EACH ROW
    WHEN (OLD.desk IS DISTINCT FROM NEW.desk OR OLD.said IS DISTINCT FROM NEW.said) EXECUTE FUNCTION certdrop.answered();

-- Who may do what with which table, and with which rows.
REVOKE ALL ON SCHEMA certdrop FROM PUBLIC;
REVOKE ALL ON ALL TABLES IN SCHEMA certdrop FROM PUBLIC, certdrop_host, certdrop_desk, certdrop_watch;
GRANT USAGE ON SCHEMA certdrop TO certdrop_host, certdrop_desk, certdrop_watch;
GRANT SELECT ON ALL TABLES IN SCHEMA certdrop TO certdrop_host, certdrop_desk, certdrop_watch;
GRANT EXECUTE ON FUNCTION certdrop.here() TO certdrop_host, certdrop_desk;
GRANT EXECUTE ON FUNCTION certdrop.here(text[]) TO certdrop_desk;
GRANT INSERT (name, number, kind, body, sig, now), UPDATE (now) ON certdrop.request TO certdrop_host;
GRANT INSERT (name, body), UPDATE (body) ON certdrop.state TO certdrop_host;
GRANT EXECUTE ON FUNCTION certdrop.forget_request(text, integer, text), certdrop.forget_state(text) TO certdrop_host;
GRANT UPDATE (desk, until, said) ON certdrop.work TO certdrop_desk;
GRANT INSERT (host, name, number, answer, chain) ON certdrop.reply TO certdrop_desk;

DO $$
DECLARE
    one text;
BEGIN
    FOREACH one IN ARRAY ARRAY['machine', 'request', 'state', 'work', 'reply', 'past'] LOOP
        EXECUTE format('ALTER TABLE certdrop.%I ENABLE ROW LEVEL SECURITY', one);
        EXECUTE format('DROP POLICY IF EXISTS reading ON certdrop.%I', one);
        EXECUTE format('DROP POLICY IF EXISTS own ON certdrop.%I', one);
        EXECUTE format('CREATE POLICY reading ON certdrop.%I FOR SELECT TO certdrop_desk, certdrop_watch USING (true)', one);
    END LOOP;
    FOREACH one IN ARRAY ARRAY['request', 'state'] LOOP
        EXECUTE format('CREATE POLICY own ON certdrop.%I FOR ALL TO certdrop_host USING (host = session_user) WITH CHECK (host = session_user)', one);
    END LOOP;
    FOREACH one IN ARRAY ARRAY['work', 'reply'] LOOP
        EXECUTE format('CREATE POLICY own ON certdrop.%I FOR SELECT TO certdrop_host USING (host = session_user)', one);
    END LOOP;
END $$;

CREATE POLICY own ON certdrop.machine FOR SELECT TO certdrop_host, certdrop_desk USING (name = session_user);
DROP POLICY IF EXISTS taking ON certdrop.work;
CREATE POLICY taking ON certdrop.work FOR UPDATE TO certdrop_desk
    USING (desk = session_user OR until < now()) WITH CHECK (desk = session_user OR (desk = '' AND until = '-infinity'));
DROP POLICY IF EXISTS answering ON certdrop.reply;
CREATE POLICY answering ON certdrop.reply FOR INSERT TO certdrop_desk WITH CHECK (EXISTS (
    SELECT FROM certdrop.work w WHERE (w.host, w.name, w.number, w.kind) = (reply.host, reply.name, reply.number, reply.kind) AND w.desk = session_user));

-- What PostgreSQL lets everybody do, and nobody needs here.
DO $$
DECLARE
    one regprocedure;
BEGIN
    EXECUTE format('REVOKE ALL ON DATABASE %I FROM PUBLIC', current_database());
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO certdrop_host, certdrop_desk, certdrop_watch', current_database());
    FOR one IN SELECT oid FROM pg_proc WHERE pronamespace = 'pg_catalog'::regnamespace
               AND (proname ~ '^(lo_|pg_advisory_|pg_try_advisory_|pg_sleep)' OR proname IN ('lowrite', 'loread', 'pg_notify', 'pg_logical_emit_message')) LOOP
        EXECUTE format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', one);
    END LOOP;
END $$;
REVOKE ALL ON SCHEMA public FROM PUBLIC;

-- What the role of a machine may hold up, for enrolling it; and here for those that were enrolled before. It gives none back the right to log in.
CREATE OR REPLACE FUNCTION certdrop.limits(a_name text) RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    EXECUTE format('ALTER ROLE %I NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS CONNECTION LIMIT 3 PASSWORD NULL', a_name);
    EXECUTE format('ALTER ROLE %I SET temp_file_limit = %L', a_name, '16MB');
    EXECUTE format('ALTER ROLE %I SET idle_in_transaction_session_timeout = %L', a_name, '10s');
    EXECUTE format('ALTER ROLE %I SET lock_timeout = %L', a_name, '2s');
END $$;
REVOKE ALL ON FUNCTION certdrop.limits(text) FROM PUBLIC;
DO $$
DECLARE
    one text;
BEGIN
    FOR one IN SELECT name FROM certdrop.machine JOIN pg_roles ON rolname = name LOOP
        PERFORM certdrop.limits(one);
    END LOOP;
END $$;
REVOKE ALL ON LANGUAGE plpgsql FROM PUBLIC;
