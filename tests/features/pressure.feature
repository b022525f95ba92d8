Feature: Memory pressure
  All happens within one budget; what was read longest ago makes room.

  Background:
    Given a budget of 3 MB
    And dimensions of a megabyte: D20, D21 and D22
    And everything is loaded

  Scenario: The dimension that was read longest ago is the first to go
    Given L20-00 was read
    And L22-00 was read
    When another megabyte is loaded
    Then only D21 is out of memory

  Scenario: An evicted dimension comes back by itself
    Given D20 had to go
    When layer L20-00 is read
    Then it is what was written
    And D20 is in memory again
    And one reload is counted

  Scenario: An evicted dimension keeps its names
    Given D20 had to go
    Then D20 is loaded
    And its layers are listed as before
    And no reload is counted

  Scenario: A pinned dimension stays
    Given D20 is pinned
    When another megabyte is loaded
    Then only D21 is out of memory

  Scenario: A dimension that someone views stays
    Given someone holds a view of L20-00
    When another megabyte is loaded
    Then only D21 is out of memory
    And the view is unchanged

  Scenario: Nothing is thrown out for what does not fit anyway
    When 4 more megabytes are loaded at once
    Then it is refused because the limit would be passed
    And the refusal tells use and limit
    And nothing is out of memory

  Scenario: Learning makes room too
    When a megabyte is learned
    Then use is at most 75 percent of the budget

  Scenario: Unloading frees memory
    When everything is unloaded
    Then no memory is in use
