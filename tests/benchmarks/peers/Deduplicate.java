import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.time.Duration;
import java.util.Properties;
import org.apache.kafka.common.serialization.Serde;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.Topology;
import org.apache.kafka.streams.processor.api.Processor;
import org.apache.kafka.streams.processor.api.ProcessorContext;
import org.apache.kafka.streams.processor.api.Record;
import org.apache.kafka.streams.state.KeyValueStore;
import org.apache.kafka.streams.state.Stores;

/**
 * The router's work as a user of Kafka Streams would write it: `Deduplicate BOOTSTRAP PREFIX THREADS`.
 *
 * It reads PREFIX.inbox, remembers of each session the newest status and time and the ids that it was told, passes over
 * repetitions, and writes changes to PREFIX.status, ends to PREFIX.unavailable and states to PREFIX.sessions, exactly
 * once. The memory is in RAM, with a changelog, and ends with nothing: sessions are not forgotten.
 */
public final class Deduplicate implements Processor<String, byte[], String, byte[]> {
    private static final String STORE = "sessions-seen";
    private static final ObjectMapper JSON = new ObjectMapper();

    private ProcessorContext<String, byte[]> context;
    private KeyValueStore<String, String> store;

    public static void main(String[] arguments) throws InterruptedException {
        String prefix = arguments[1];
        Properties settings = new Properties();
        settings.put(StreamsConfig.APPLICATION_ID_CONFIG, prefix + ".streams");
        settings.put(StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, arguments[0]);
        settings.put(StreamsConfig.PROCESSING_GUARANTEE_CONFIG, StreamsConfig.EXACTLY_ONCE_V2);
        settings.put(StreamsConfig.NUM_STREAM_THREADS_CONFIG, arguments[2]);
        settings.put(StreamsConfig.REPLICATION_FACTOR_CONFIG, 1);
        settings.put(StreamsConfig.STATE_DIR_CONFIG, arguments[3]);
        settings.put(StreamsConfig.consumerPrefix("auto.offset.reset"), "earliest");
        KafkaStreams streams = new KafkaStreams(topology(prefix), settings);
        Runtime.getRuntime().addShutdownHook(new Thread(() -> streams.close(Duration.ofSeconds(10))));
        streams.start();
        Thread.currentThread().join();
    }

    private static Topology topology(String prefix) {
        Serde<String> text = Serdes.String();
        Serde<byte[]> bytes = Serdes.ByteArray();
        return new Topology()
            .addSource("inbox", text.deserializer(), bytes.deserializer(), prefix + ".inbox")
            .addProcessor("decide", Deduplicate::new, "inbox")
            .addStateStore(
                Stores.keyValueStoreBuilder(Stores.inMemoryKeyValueStore(STORE), text, text), "decide")
            .addSink("status", prefix + ".status", text.serializer(), bytes.serializer(), "decide")
            .addSink("unavailable", prefix + ".unavailable", text.serializer(), bytes.serializer(), "decide")
            .addSink("sessions", prefix + ".sessions", text.serializer(), bytes.serializer(), "decide");
    }

    @Override
    public void init(ProcessorContext<String, byte[]> given) {
        context = given;
        store = given.getStateStore(STORE);
    }

    @Override
    public void process(Record<String, byte[]> record) {
        try {
            JsonNode event = JSON.readTree(record.value());
            JsonNode data = event.get("data");
            String session = data.get("sessionId").textValue();
            String status = data.get("qosStatus").textValue();
            String time = event.get("time").textValue();
            String id = event.get("source").textValue() + ' ' + event.get("id").textValue();
            String known = store.get(session); // status, time, and a line for each id
            if (known != null && known.contains('\n' + id + '\n')) {
                return;
            }
            boolean late = known != null && time.compareTo(known.split(" ", 3)[1]) < 0;
            String ids = known == null ? "\n" : known.substring(known.indexOf('\n'));
            String head = late ? known.substring(0, known.indexOf('\n')) : status + ' ' + time + ' ';
            store.put(session, head + ids + id + '\n');
            ObjectNode value = JSON.createObjectNode();
            value.put("sessionId", session).put("qosStatus", status).put("eventTime", time);
            value.put("id", event.get("id").textValue()).put("late", late);
            Record<String, byte[]> change = new Record<>(session, JSON.writeValueAsBytes(value), record.timestamp());
            context.forward(change, "status");
            if (status.equals("UNAVAILABLE") && !late) {
                context.forward(change, "unavailable");
            }
            if (!late) {
                context.forward(change, "sessions");
            }
        } catch (Exception error) {
            throw new IllegalStateException(error);
        }
    }
}
