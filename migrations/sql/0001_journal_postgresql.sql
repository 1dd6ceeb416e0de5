-- What the functions keep by SET search_path FROM CURRENT: this schema, and temporary tables last,
-- since a caller's own temporary "journals" would come first otherwise and run with owner's rights.
DO $$
BEGIN
    PERFORM set_config('search_path', quote_ident(current_schema()) || ', pg_temp', true);
END $$;
--;;
-- Append-only: nobody changes or removes what was recorded. Triggers hold the owner as well, until
-- the owner disables them; ENABLE ALWAYS so that session_replication_role does not get past them.

CREATE FUNCTION ledger_deny() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'table % is append-only: % denied', TG_TABLE_NAME, TG_OP
        USING ERRCODE = 'insufficient_privilege';
END $$;
--;;

CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON events
    FOR EACH ROW EXECUTE FUNCTION ledger_deny();
--;;
CREATE TRIGGER append_only_truncate BEFORE TRUNCATE ON events
    FOR EACH STATEMENT EXECUTE FUNCTION ledger_deny();
--;;
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON event_tags
    FOR EACH ROW EXECUTE FUNCTION ledger_deny();
--;;
CREATE TRIGGER append_only_truncate BEFORE TRUNCATE ON event_tags
    FOR EACH STATEMENT EXECUTE FUNCTION ledger_deny();
--;;
CREATE TRIGGER append_only BEFORE DELETE ON journals
    FOR EACH ROW EXECUTE FUNCTION ledger_deny();
--;;
CREATE TRIGGER append_only_truncate BEFORE TRUNCATE ON journals
    FOR EACH STATEMENT EXECUTE FUNCTION ledger_deny();
--;;

CREATE FUNCTION ledger_deny_shrinking() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.size < OLD.size OR NEW.journal_id <> OLD.journal_id OR NEW.name <> OLD.name THEN
        RAISE EXCEPTION 'journal % can only grow', OLD.name
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN NEW;
END $$;
--;;

CREATE TRIGGER only_grows BEFORE UPDATE ON journals
    FOR EACH ROW EXECUTE FUNCTION ledger_deny_shrinking();
--;;

ALTER TABLE events ENABLE ALWAYS TRIGGER append_only;
--;;
ALTER TABLE events ENABLE ALWAYS TRIGGER append_only_truncate;
--;;
ALTER TABLE event_tags ENABLE ALWAYS TRIGGER append_only;
--;;
ALTER TABLE event_tags ENABLE ALWAYS TRIGGER append_only_truncate;
--;;
ALTER TABLE journals ENABLE ALWAYS TRIGGER append_only;
--;;
ALTER TABLE journals ENABLE ALWAYS TRIGGER append_only_truncate;
--;;
ALTER TABLE journals ENABLE ALWAYS TRIGGER only_grows;
--;;


-- The time. Simulations and tests, which connect as the owner, may say what it is; a service may
-- not, or it could date events as it likes. Called with the owner's rights, so current_user is it.
CREATE FUNCTION ledger_clock(p_now timestamptz) RETURNS timestamptz LANGUAGE plpgsql AS $$
BEGIN
    IF p_now IS NOT NULL AND NOT pg_has_role(session_user, current_user, 'MEMBER') THEN
        RAISE EXCEPTION 'only the owner of the journal may set its clock'
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN coalesce(p_now, clock_timestamp());
END $$;
--;;


-- The one way to append. A batch of appends is one statement, so one transaction: a client that is
-- frozen half-way can hold no lock. Outcomes equal running the appends one after the other.
--
-- The caller cuts the batch into rounds (r_appends: how many appends each holds) such that no
-- append looks at what an earlier one of its round writes; a round is then checked as a set against
-- what the journal held when it began. e_nth is an event's place among its stream's in the round.
-- Empty arrays stand for what is usual: e_nth 1, e_expected any, e_schema 1, e_occurred and
-- e_metadata none.
--
-- Statuses of an append: 0 stored, 1 known already (same content), 2 condition failed,
-- 3 event id known with other content or in part, 4 tag taken.
-- a_which is the condition (2) or tag (4) at fault as an index into the arrays given, or minus the
-- index of the event whose e_expected did not hold; a_found is the version or offset found instead.
--
-- Correlated scalar subqueries on purpose: a join against unnest() was seen to hash the whole table.
-- Each asks for a range in the order of the index that is meant for it, and the caller's session has
-- sorting off. Else all indexes look alike to the planner while the table is empty, or for a journal
-- that is new beside large ones, and a plan that walks the whole journal was seen to be kept.
CREATE FUNCTION ledger_append(
    p_journal bigint, p_now timestamptz, r_appends int[],
    e_append int[], e_nth int[], e_expected bigint[], e_id uuid[], e_stream text[], e_type text[],
    e_schema smallint[], e_occurred timestamptz[], e_metadata bytea[], e_body bytea[],
    t_event int[], t_tag text[], t_kind smallint[],
    c_append int[], c_kind smallint[], c_stream text[], c_tag text[], c_types text[],
    c_number bigint[], c_window interval[],
    OUT recorded_at timestamptz,
    OUT a_status smallint[], OUT a_which int[], OUT a_found bigint[], OUT e_offset bigint[]
) LANGUAGE plpgsql SECURITY DEFINER
SET search_path FROM CURRENT
AS $$
#variable_conflict use_column
DECLARE
    v_size bigint;
    v_last timestamptz;
    v_now timestamptz;
    v_base bigint[];       -- version of each event's stream before the round
    v_known bigint[];      -- offset of each event that is stored already, else -1
    v_known_max bigint;
    v_place int[];         -- place among the stored events of the round, 0 where not stored
    v_nth int[];           -- place among those of them that are in the same stream
    v_stored int;
    v_append int;
    v_which int;
    v_found bigint;
    a_first int := 1; a_last int;
    e_first int := 1; e_last int := 0;
    t_first int := 1; t_last int := 0;
    c_first int := 1; c_last int := 0;
    v_events int := cardinality(e_append);
    v_tags int := cardinality(t_event);
    v_conditions int := cardinality(c_append);
    v_appends int;
BEGIN
    SELECT j.size, j.last_recorded_at INTO v_size, v_last
        FROM journals j WHERE j.journal_id = p_journal FOR UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'no journal has the id %', p_journal USING ERRCODE = 'no_data_found';
    END IF;
    v_now := greatest(ledger_clock(p_now), v_last);
    recorded_at := v_now;
    v_appends := e_append[v_events];
    a_status := array_fill(0::smallint, ARRAY[v_appends]);
    a_which := array_fill(0, ARRAY[v_appends]);
    a_found := array_fill(0::bigint, ARRAY[v_appends]);
    e_offset := '{}';

    FOREACH a_last IN ARRAY r_appends LOOP
        a_last := a_first + a_last - 1;
        WHILE e_last < v_events AND e_append[e_last + 1] <= a_last LOOP
            e_last := e_last + 1;
        END LOOP;
        WHILE t_last < v_tags AND t_event[t_last + 1] <= e_last LOOP
            t_last := t_last + 1;
        END LOOP;
        WHILE c_last < v_conditions AND c_append[c_last + 1] <= a_last LOOP
            c_last := c_last + 1;
        END LOOP;

        SELECT array_agg(p.base ORDER BY p.ord), array_agg(p.known ORDER BY p.ord), max(p.known)
            INTO v_base, v_known, v_known_max
            FROM (SELECT n.ord,
                    coalesce((SELECT s.version FROM events s
                        WHERE s.journal_id = p_journal AND s.stream = n.stream
                        ORDER BY s.version DESC LIMIT 1), 0) AS base,
                    coalesce((SELECT k."offset" FROM events k
                        WHERE k.journal_id = p_journal AND k.event_id BETWEEN n.id AND n.id
                        ORDER BY k.event_id LIMIT 1), -1) AS known
                FROM unnest(e_stream[e_first:e_last], e_id[e_first:e_last])
                    WITH ORDINALITY AS n(stream, id, ord) OFFSET 0) p;

        -- Known event ids come before any condition: a retry must succeed whatever happened since.
        IF v_known_max >= 0 THEN
            FOR v_append, v_which, v_found IN
                SELECT n.append,
                    CASE WHEN bool_and(n.known >= 0 AND (SELECT k.stream = n.stream
                        AND k.type = n.type AND k.schema_version = coalesce(n.schema, 1)
                        AND k.body = n.body
                        FROM events k
                        WHERE k.journal_id = p_journal AND k."offset" BETWEEN n.known AND n.known
                        ORDER BY k."offset" LIMIT 1))
                    THEN 1 ELSE 3 END,
                    max(n.known)
                FROM unnest(e_append[e_first:e_last], v_known, e_stream[e_first:e_last],
                        e_type[e_first:e_last], e_schema[e_first:e_last], e_body[e_first:e_last])
                    AS n(append, known, stream, type, schema, body)
                GROUP BY n.append HAVING max(n.known) >= 0
            LOOP
                a_status[v_append] := v_which;
                a_found[v_append] := v_found;
            END LOOP;
        END IF;

        FOR v_append, v_which, v_found IN
            SELECT x.append, x.which, x.base
                FROM unnest(e_append[e_first:e_last], e_expected[e_first:e_last], v_base)
                    WITH ORDINALITY AS x(append, expected, base, which)
                WHERE x.expected >= 0 AND x.expected <> x.base ORDER BY x.which
        LOOP
            IF a_status[v_append] = 0 THEN
                a_status[v_append] := 2;
                a_which[v_append] := 1 - e_first - v_which;
                a_found[v_append] := v_found;
            END IF;
        END LOOP;

        IF c_last >= c_first THEN
            FOR v_append, v_which, v_found IN
                SELECT q.append, q.which, q.found
                FROM (SELECT c.append, c_first + c.ord::int - 1 AS which,
                    CASE c.kind
                    WHEN 1 THEN nullif(coalesce((SELECT s.version FROM events s
                        WHERE s.journal_id = p_journal AND s.stream = c.stream
                        ORDER BY s.version DESC LIMIT 1), 0), c.number)
                    WHEN 2 THEN (SELECT g."offset" FROM event_tags g
                        WHERE g.journal_id = p_journal AND g.tag = c.tag AND g."offset" > c.number
                            AND (c.types = '' OR g.type = ANY (string_to_array(c.types, ',')))
                        ORDER BY g."offset" LIMIT 1)
                    WHEN 3 THEN (SELECT s."offset" FROM events s
                        WHERE s.journal_id = p_journal AND s.stream = c.stream
                            AND s."offset" > c.number
                            AND (c.types = '' OR s.type = ANY (string_to_array(c.types, ',')))
                        ORDER BY s.version LIMIT 1)
                    WHEN 4 THEN (SELECT CASE WHEN s.recorded_at > v_now - c.span
                            THEN s."offset" END FROM events s
                        WHERE s.journal_id = p_journal AND s.stream = c.stream
                            AND s.version <= (SELECT l.version FROM events l
                                WHERE l.journal_id = p_journal AND l.stream = c.stream
                                ORDER BY l.version DESC LIMIT 1) - c.number
                        ORDER BY s.version DESC LIMIT 1)
                    END AS found
                    FROM unnest(c_append[c_first:c_last], c_kind[c_first:c_last],
                            c_stream[c_first:c_last], c_tag[c_first:c_last],
                            c_types[c_first:c_last], c_number[c_first:c_last],
                            c_window[c_first:c_last]) WITH ORDINALITY
                        AS c(append, kind, stream, tag, types, number, span, ord)) q
                WHERE q.found IS NOT NULL ORDER BY q.which
            LOOP
                IF a_status[v_append] = 0 THEN
                    a_status[v_append] := 2;
                    a_which[v_append] := v_which;
                    a_found[v_append] := v_found;
                END IF;
            END LOOP;
        END IF;

        IF t_last >= t_first THEN
            FOR v_append, v_which, v_found IN
                SELECT q.append, q.which, q.found
                FROM (SELECT e_append[t.event] AS append, t_first + t.ord::int - 1 AS which,
                    (SELECT CASE WHEN h.stream <> e_stream[t.event]
                            AND (SELECT max(f."offset") FROM event_tags f
                                WHERE f.journal_id = p_journal AND f.tag = t.tag AND f.kind = 2
                                    AND f.stream = h.stream AND f."offset" > h."offset") IS NULL
                            THEN h."offset" END
                        FROM event_tags h
                        WHERE h.journal_id = p_journal AND h.tag = t.tag AND h.kind = 1
                        ORDER BY h."offset" DESC LIMIT 1) AS found
                    FROM unnest(t_event[t_first:t_last], t_tag[t_first:t_last],
                            t_kind[t_first:t_last]) WITH ORDINALITY AS t(event, tag, kind, ord)
                    WHERE t.kind = 1) q
                WHERE q.found IS NOT NULL ORDER BY q.which
            LOOP
                IF a_status[v_append] = 0 THEN
                    a_status[v_append] := 4;
                    a_which[v_append] := v_which;
                    a_found[v_append] := v_found;
                END IF;
            END LOOP;
        END IF;

        IF a_status[a_first:a_last] = array_fill(0::smallint, ARRAY[a_last - a_first + 1]) THEN
            v_stored := e_last - e_first + 1;
            v_place := ARRAY(SELECT generate_series(1, v_stored));
            v_nth := e_nth[e_first:e_last];
        ELSE
            SELECT array_agg(p.place ORDER BY p.ord), array_agg(p.nth ORDER BY p.ord), max(p.place)
                INTO v_place, v_nth, v_stored
                FROM (SELECT n.ord,
                        CASE WHEN a_status[n.append] = 0 THEN
                            count(*) FILTER (WHERE a_status[n.append] = 0) OVER (ORDER BY n.ord)
                        ELSE 0 END AS place,
                        count(*) FILTER (WHERE a_status[n.append] = 0)
                            OVER (PARTITION BY n.stream ORDER BY n.ord) AS nth
                    FROM unnest(e_append[e_first:e_last], e_stream[e_first:e_last])
                        WITH ORDINALITY AS n(append, stream, ord)) p;
        END IF;

        INSERT INTO events (journal_id, "offset", event_id, stream, version, type, schema_version,
                occurred_at, recorded_at, metadata, body)
            SELECT p_journal, v_size - 1 + n.place, n.id, n.stream, n.base + coalesce(n.nth, 1),
                n.type, coalesce(n.schema, 1), coalesce(n.occurred, v_now), v_now, n.metadata,
                n.body
            FROM unnest(v_place, v_nth, v_base, e_id[e_first:e_last], e_stream[e_first:e_last],
                    e_type[e_first:e_last], e_schema[e_first:e_last], e_occurred[e_first:e_last],
                    e_metadata[e_first:e_last], e_body[e_first:e_last])
                AS n(place, nth, base, id, stream, type, schema, occurred, metadata, body)
            WHERE n.place > 0;

        IF t_last >= t_first THEN
            INSERT INTO event_tags (journal_id, tag, "offset", kind, type, stream)
                SELECT p_journal, t.tag, v_size - 1 + v_place[t.event - e_first + 1], t.kind,
                    e_type[t.event], e_stream[t.event]
                FROM unnest(t_event[t_first:t_last], t_tag[t_first:t_last], t_kind[t_first:t_last])
                    AS t(event, tag, kind)
                WHERE v_place[t.event - e_first + 1] > 0;
        END IF;

        e_offset := e_offset || ARRAY(
            SELECT CASE WHEN n.place > 0 THEN v_size - 1 + n.place ELSE n.known END
            FROM unnest(v_place, v_known) WITH ORDINALITY AS n(place, known, ord) ORDER BY n.ord);
        v_size := v_size + v_stored;
        a_first := a_last + 1;
        e_first := e_last + 1;
        t_first := t_last + 1;
        c_first := c_last + 1;
    END LOOP;

    UPDATE journals SET size = v_size, last_recorded_at = v_now
        WHERE journal_id = p_journal AND size < v_size;
END $$;
--;;


-- The size of a journal once no append is under way, and the time from which recorded_at counts on:
-- an event recorded at or before `now` lies below `size`.
CREATE FUNCTION ledger_settle(p_journal bigint, p_now timestamptz,
    OUT size bigint, OUT now timestamptz
) LANGUAGE plpgsql SECURITY DEFINER
SET search_path FROM CURRENT
AS $$
BEGIN
    SELECT j.size, greatest(ledger_clock(p_now), j.last_recorded_at)
        INTO size, now FROM journals j WHERE j.journal_id = p_journal FOR SHARE;
    -- Rolling back gives the lock back at once, whatever transaction the caller has open.
    RAISE EXCEPTION 'settled' USING ERRCODE = 'LG001';
EXCEPTION WHEN SQLSTATE 'LG001' THEN
    NULL;
END $$;
--;;
INSERT INTO journals (name, created_at) VALUES ('main', CURRENT_TIMESTAMP);
