//! What was said once is said again: recorded conversations against this broker and this client.

use tests::transcripts::SCENARIOS;

#[test]
fn this_broker_answers_as_brokers_of_version_1_did() {
    for scenario in SCENARIOS {
        scenario.replay_to_a_broker();
    }
}

#[test]
fn this_client_writes_what_clients_of_version_1_did() {
    for scenario in SCENARIOS {
        scenario.replay_to_a_client();
    }
}
