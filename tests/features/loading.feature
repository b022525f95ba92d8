Feature: Loading dimensions
  Dimensions lie in files; loading one makes its layers readable.

  Scenario: What is on disk can be loaded
    Given files of the dimensions D01 and D20
    When D01 is loaded
    Then D01 is loaded
    And its layers can be read

  Scenario: A missing dimension is skipped and the others are loaded
    Given files of the dimensions D01 and D03
    When all core dimensions are loaded
    Then D01 and D03 are loaded
    And the other 12 are reported as skipped, each with the reason

  Scenario: A missing dimension that is asked for by name
    Given files of the dimensions D01 and D03
    When D02 is loaded
    Then it is refused because the dimension is not there
    And the refusal names D02

  Scenario: A dimension is loaded once
    Given files of the dimensions D01 and D20
    When D01 is loaded
    And D01 is loaded
    Then it is refused as a duplicate
    And D01 is loaded

  Scenario: A broken file leaves nothing behind
    Given files of the dimensions D01 and D20
    And the file of D20 is broken
    When D20 is loaded
    Then it is refused because the file breaks the format
    And D20 is not loaded
    And no memory is in use

  Scenario: Without any file the bundled layers are read
    When all core dimensions are loaded
    Then the bundled layers are readable
