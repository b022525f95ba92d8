Feature: Learning
  What is learned lives in memory until it is crystallized into the dimension's file.

  Background:
    Given files of the dimensions D01 and D20
    And everything is loaded

  Scenario: What is learned is readable at once
    When "a new thought" is learned in D20
    Then it can be read
    And it is in memory

  Scenario: Crystallizing what lies in memory
    Given "a new thought" was learned in D20
    When it is crystallized
    Then it can be read
    And it is in the file

  Scenario: What was learned survives a restart
    Given "a new thought" was learned in D20
    When it is crystallized
    And the store is closed and opened again
    Then it can be read
    And the layers that were there before can be read

  Scenario: What was not crystallized does not survive a restart
    Given "a passing thought" was learned in D20
    When the store is closed and opened again
    Then it is not there

  Scenario: A dimension that has no file yet
    Given "the first of its kind" was learned in D33
    When it is crystallized
    And the store is closed and opened again
    Then it can be read

  Scenario: Something is added to a layer
    When "an afterthought" is laid over L20-01
    Then L20-01 ends in "an afterthought"
    And the file of D20 is unchanged
    When what lies over L20-01 is dropped
    Then the layers that were there before can be read

  Scenario: Readers during crystallization see no corruption
    Given "a new thought" was learned in D20
    When it is crystallized while 8 readers read it
    Then each of them reads what was written
    And they read it from memory before and from the file after

  Scenario: A layer on disk is not changed
    When someone wants to change L20-01
    Then it is refused because what is written stays

  Scenario Outline: An ethical dimension cannot be changed
    Given a file of the dimension <dimension>
    And <dimension> is loaded
    When someone wants to learn in <dimension>
    Then it is refused because what is written stays
    And the refusal names <dimension>

    Examples:
      | dimension |
      | D09       |
      | D14       |
