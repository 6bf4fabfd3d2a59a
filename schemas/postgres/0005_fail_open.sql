-- Whether calls of a vendor's route pass without a hold while the spend state is away; null is left to wider rules.
ALTER TABLE route_rules
  ADD COLUMN fail_open boolean,
  DROP CONSTRAINT route_rules_check,
  ADD CONSTRAINT route_rules_check CHECK (
    budget_status IS NOT NULL OR timeout_ms IS NOT NULL OR fallbacks IS NOT NULL OR fail_open IS NOT NULL
  );
