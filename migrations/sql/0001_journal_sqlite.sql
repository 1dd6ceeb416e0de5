-- Append-only. SQLite's REPLACE gets past delete triggers, so an insert is also denied wherever it
-- would replace something: at a known offset, event id, or version of a stream.

CREATE TRIGGER events_update BEFORE UPDATE ON events
BEGIN SELECT RAISE(ABORT, 'table events is append-only: UPDATE denied'); END;
--;;
CREATE TRIGGER events_delete BEFORE DELETE ON events
BEGIN SELECT RAISE(ABORT, 'table events is append-only: DELETE denied'); END;
--;;
CREATE TRIGGER events_replace BEFORE INSERT ON events
WHEN NEW."offset" <> (SELECT coalesce(max("offset"), -1) + 1 FROM events
        WHERE journal_id = NEW.journal_id)
    OR EXISTS (SELECT 1 FROM events
        WHERE journal_id = NEW.journal_id AND event_id = NEW.event_id)
    OR EXISTS (SELECT 1 FROM events
        WHERE journal_id = NEW.journal_id AND stream = NEW.stream AND version = NEW.version)
BEGIN SELECT RAISE(ABORT, 'table events is append-only: REPLACE or gap denied'); END;
--;;
CREATE TRIGGER event_tags_update BEFORE UPDATE ON event_tags
BEGIN SELECT RAISE(ABORT, 'table event_tags is append-only: UPDATE denied'); END;
--;;
CREATE TRIGGER event_tags_delete BEFORE DELETE ON event_tags
BEGIN SELECT RAISE(ABORT, 'table event_tags is append-only: DELETE denied'); END;
--;;
CREATE TRIGGER event_tags_replace BEFORE INSERT ON event_tags
WHEN EXISTS (SELECT 1 FROM event_tags WHERE journal_id = NEW.journal_id AND tag = NEW.tag
        AND "offset" = NEW."offset" AND kind = NEW.kind)
BEGIN SELECT RAISE(ABORT, 'table event_tags is append-only: REPLACE denied'); END;
--;;
CREATE TRIGGER journals_delete BEFORE DELETE ON journals
BEGIN SELECT RAISE(ABORT, 'table journals is append-only: DELETE denied'); END;
--;;
CREATE TRIGGER journals_shrink BEFORE UPDATE ON journals
WHEN NEW.size < OLD.size OR NEW.journal_id <> OLD.journal_id OR NEW.name <> OLD.name
BEGIN SELECT RAISE(ABORT, 'a journal can only grow'); END;
--;;
CREATE TRIGGER journals_replace BEFORE INSERT ON journals
WHEN EXISTS (SELECT 1 FROM journals WHERE journal_id = NEW.journal_id OR name = NEW.name)
BEGIN SELECT RAISE(ABORT, 'table journals is append-only: REPLACE denied'); END;
--;;
INSERT INTO journals (name, created_at) VALUES ('main', strftime('%Y-%m-%dT%H:%M:%f000Z', 'now'));
