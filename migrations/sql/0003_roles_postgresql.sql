REVOKE ALL ON orders, positions, postings, book_balances FROM PUBLIC;
--;;
GRANT SELECT ON orders, positions, postings, book_balances
    TO ledger_service, ledger_projector, ledger_reader;
--;;
GRANT INSERT, UPDATE ON orders, positions, book_balances TO ledger_projector;
--;;
GRANT INSERT ON postings TO ledger_projector;
